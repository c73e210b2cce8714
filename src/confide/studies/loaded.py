"""`load`: a released model, ready to predict.

>>> loaded = confide.load("releases/pbc-death-20261122T120000Z-1a2b3c")                           # doctest: +SKIP
>>> loaded.predict("new_visits.csv")                                                             # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.errors import InputError
from confide.release import Release
from confide.studies.file import Study, parse_study
from confide.studies.models import build_model, probabilities, require_torch
from confide.studies.predict import answers, each_member, empty_predictor
from confide.studies.search import WINNER_FILE, winner_study
from confide.studies.targets import answers_of, schema_of, written

if TYPE_CHECKING:
    import numpy.typing as npt
    import polars as pl

    from confide.data import Schema, SourceSpec


class LoadedModel:
    """A released model, ready to predict.

    Attributes
    ----------
    release : Release
    model : torch.nn.Module
        In evaluation mode.
    study : Study or None
        As run, where the release came from a study file.
    """

    def __init__(self, release: Release, model: Any, study: Study | None) -> None:
        self.release, self.model, self.study = release, model, study

    @property
    def certificate(self) -> Any:
        """What the release states about itself."""
        return self.release.certificate

    def predict(self, table: pl.DataFrame | str | Path, *, base: Path | None = None) -> pl.DataFrame:
        """Predict each row of a table with the feature columns that the study declared.

        Parameters
        ----------
        table : polars.DataFrame or path of a CSV or Parquet file
            Labels and contributor ids are not needed. A CSV file has the separator and decimal sign of the study's.
        base : path, optional
            Where the paths of pictures start; default: the folder of `table`, or the current one.

        Returns
        -------
        polars.DataFrame
            The id columns of the study that the table has, unchanged, then ``probability`` for a yes/no label, else
            ``probability_<class>`` for each class; rows in the given order. An ensemble adds ``answer`` (a class, yes
            or no, or "deferred" where too few members agree) and ``votes``, the members that say so. Where the label is
            a number, ``predicted`` in its unit, within its declared bounds.

        Raises
        ------
        InputError
            A missing column or a value outside its declaration, as in training; or a release without a study file.
        """
        import polars as pl

        schema, declared, frame, features = self.read(table, base=base)
        if schema.target == "mask":
            raise InputError(
                "this model answers with a mask for each picture, not with a column",
                where=str(self.release.path),
                remedy="in Python loaded.masks(table); on the command line give --output FOLDER, or FILE.npz where "
                "the pictures are an array",
            )
        ids = [name for name in (declared.contributor, declared.entry) if name in frame.columns]
        columns: dict[str, Any] = {str(name): frame[name] for name in ids}
        label = schema.label
        assert label is not None
        classes: list[Any] = ["no", "yes"]
        if schema.target == "number":
            assert self.study is not None
            return pl.DataFrame({**columns, "predicted": answers_of(self.study, self.model, features)})
        found = probabilities(self.model, features, outputs=schema.n_outputs)
        if found.ndim == 1:
            columns["probability"] = found
        else:
            classes = list(label[1].classes or range(found.shape[1]))
            columns |= {f"probability_{c}": found[:, i] for i, c in enumerate(classes)}
        return pl.DataFrame({**columns, **self._votes(features, [str(c) for c in classes], schema.n_outputs)})

    def masks(self, table: pl.DataFrame | str | Path, *, base: Path | None = None) -> npt.NDArray[Any]:
        """Return the mask of each picture, where the study's label is a mask.

        Parameters
        ----------
        table, base
            As for `predict`; labels are not needed.

        Returns
        -------
        uint8 or uint16 array, shape (n, height, width) or (n, depth, height, width)
            Declared values of the classes, at the declared size of the pictures.

        Raises
        ------
        InputError
            As `predict`; or the label is no mask.
        """
        schema, _, _, features = self.read(table, base=base)
        if schema.target != "mask":
            raise InputError(
                "this model answers with one value for each row, not with masks",
                where=str(self.release.path),
                remedy="call predict(table)",
            )
        assert self.study is not None
        return written(self.study, answers_of(self.study, self.model, features))

    def read(
        self, table: pl.DataFrame | str | Path, *, base: Path | None = None
    ) -> tuple[Schema, SourceSpec, Any, Any]:
        """Return the declared columns, the study's first source, the rows of a table, and the inputs of the model.

        Raises
        ------
        InputError
            As `predict`.
        """
        import polars as pl

        from confide.data import SourceSpec, read_features, read_source

        if self.study is None:
            raise InputError(
                "this release has no study file that says how a table becomes model inputs",
                where=str(self.release.path),
                remedy="call the model itself: confide.load(path, model=...).model(inputs)",
            )
        schema, declared = schema_of(self.study), self.study.data[0]
        if isinstance(table, pl.DataFrame):
            frame, base = table, base or Path(".")
        else:
            spec = SourceSpec(
                source=str(table), contributor="row", separator=declared.separator, decimal=declared.decimal
            )
            frame, _ = read_source(spec, base=base or Path("."))
            base = base or (Path(table).parent if Path(table).is_file() else Path("."))
        features = read_features(
            frame if isinstance(table, pl.DataFrame) else spec, schema, base=base, images=declared.images
        )
        return schema, declared, frame, features

    def _votes(self, features: Any, classes: list[str], outputs: int) -> dict[str, Any]:
        """Columns of an ensemble: what enough of its members agree on, and how many they are."""
        assert self.study is not None
        voters = self.study.training.voters
        if voters is None:
            return {}
        members = each_member(self.model, features, outputs=outputs)
        said, votes = answers(members, classes, agree=voters.agree, threshold=self.study.evaluation.threshold)
        return {"answer": said, "votes": votes}


def load(path: str | Path, *, model: Any = None, base: str | Path | None = None) -> LoadedModel:
    """Load a released model.

    Parameters
    ----------
    path : path
        A release folder.
    model : torch.nn.Module, optional
        An untrained model of the released architecture; needed where the release has no study file.
    base : path, optional
        Folder in which ``module:Class`` of the study is looked up; default: the current folder.

    Raises
    ------
    InputError
        No release, or weights that do not fit the model.
    VerificationError
        The certificate does not have the published form, or the weights are not the certified ones.
    """
    require_torch()
    from safetensors.torch import load_file

    from confide._files import sha256_of
    from confide.errors import VerificationError

    release = Release.load(path)
    weights = release.file("model.safetensors")
    if not weights.is_file() or sha256_of(weights) != release.certificate.artefacts["model.safetensors"]:
        raise VerificationError(
            "the weights are not the certified ones",
            where=str(weights),
            expected="the SHA-256 that the certificate states",
            remedy="fetch the release again from whoever published it",
        )
    study: Study | None = None
    if "study.toml" in release.certificate.artefacts:
        study = parse_study(
            release.file("study.toml").read_text(encoding="utf-8"), where=str(release.path / "study.toml")
        )
        if study.search is not None:
            chosen = release.file(WINNER_FILE)
            if not chosen.is_file() or sha256_of(chosen) != release.certificate.artefacts.get(WINNER_FILE):
                raise VerificationError(
                    "the winner of the search is not the certified one",
                    where=str(chosen),
                    expected="the SHA-256 that the certificate states",
                    remedy="fetch the release again from whoever published it",
                )
            study = winner_study(study, chosen)
    if model is None:
        if study is None:
            raise InputError(
                "this release does not say how to build its model",
                where=str(release.path),
                remedy="give an untrained one: confide.load(path, model=MyModel())",
            )
        schema = schema_of(study)
        declared, home = study, Path(base) if base else Path(".")
        model = empty_predictor(
            study,
            lambda: build_model(declared, inputs=input_shape_of(declared), outputs=schema.n_outputs, base=home),
            outputs=schema.n_outputs,
        )
    try:
        model.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise InputError(
            "the weights do not fit this model",
            where=str(weights),
            expected="the architecture that was trained",
            remedy=str(error).splitlines()[-1].strip(),
        ) from error
    model.eval()
    return LoadedModel(release, model, study)


def input_shape_of(study: Study) -> tuple[int, ...]:
    """Shape of one entry, from the declaration alone."""
    images = study.data[0].images
    if images is not None:
        return images.shape
    return (len(schema_of(study).feature_names),)
