"""The gallery: one small file a paper, each with a claim, a criterion and what was found here.

>>> "multiplicity" in names()
True
>>> study("multiplicity").claim.startswith("Models")
True
"""

from __future__ import annotations

import importlib
import json
from importlib import resources

from confide.errors import InputError, nearest
from confide.studies.gallery.base import (
    Context,
    Figure,
    Finding,
    GalleryStudy,
    Outcome,
    over_repetitions,
    run_study_of_gallery,
)

# One module each, in the order in which they are shown.
_MODULES = (
    "pneumonia",
    "multiplicity",
    "fair_xray",
    "langevin",
    "bam",
    "neuraldp",
    "complex_mri",
    "slices_3d",
    "segmentation",
    "smoothnet",
    "scalenorm",
    "scattering",
)


def names() -> tuple[str, ...]:
    """Return the names of all studies."""
    return tuple(name.replace("_", "-") for name in _MODULES)


def study(name: str) -> GalleryStudy:
    """Return a study by its name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in names():
        close = nearest(name, names())
        raise InputError(
            f"there is no study {name!r}" + (f"; did you mean {close!r}?" if close else ""),
            where="confide studies run",
            expected="one of " + ", ".join(names()),
        )
    found = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").STUDY
    assert isinstance(found, GalleryStudy)
    return found


def kept_finding(name: str) -> Finding | None:
    """Return the finding of the last full run that was kept with this version, or None."""
    file = resources.files(__name__) / "findings" / f"{name}.json"
    if not file.is_file():
        return None
    return Finding.from_dict(json.loads(file.read_text(encoding="utf-8")))


def kept_beside(name: str) -> dict[str, Finding]:
    """Return findings of the same study on other data, by a short name of the data; they decide nothing."""
    folder = resources.files(__name__) / "findings"
    found = {}
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        study_name, mark, data = file.name.removesuffix(".json").partition("@")
        if mark and study_name == name:
            found[data] = Finding.from_dict(json.loads(file.read_text(encoding="utf-8")))
    return found


__all__ = [
    "Context",
    "Figure",
    "Finding",
    "GalleryStudy",
    "Outcome",
    "kept_beside",
    "kept_finding",
    "names",
    "over_repetitions",
    "run_study_of_gallery",
    "study",
]
