"""``confide predict`` where the answers are masks: a file for each picture, or one ``.npz`` for an array."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from confide._files import write_atomic
from confide.data.images import picture_size
from confide.errors import InputError, MissingExtraError
from confide.release import outside_releases
from confide.studies.targets import answers_of, written

if TYPE_CHECKING:
    from confide.data import SourceSpec
    from confide.studies.loaded import LoadedModel

#: The table beside the masks of an image folder.
TABLE = "masks.csv"


def write_masks(loaded: LoadedModel, table: str | Path, output: str | Path, *, force: bool = False) -> int:
    """Mark the pictures of a table and write the masks.

    Parameters
    ----------
    loaded : LoadedModel
        Of a study whose label is a mask.
    table : path
        As for `LoadedModel.predict`: a table that names picture files, or a ``.npz`` file (``file.npz#test_``).
    output : path
        For picture files a folder: a PNG label image for each, of the picture's own size and name, and `TABLE`, which
        names pictures and masks. For arrays a ``.npz`` file: the masks under the label's name, beside the ids.
    force : bool
        Overwrite.

    Returns
    -------
    int
        Number of masks.

    Raises
    ------
    InputError
        The output exists, lies inside a release, is a folder where a file is expected or the other way round; or
        as `LoadedModel.masks`.
    """
    output = Path(output)
    outside_releases(output)
    schema, declared, frame, features = loaded.read(table)
    assert schema.label is not None
    assert declared.images is not None
    assert loaded.study is not None
    name = schema.label[0]
    in_array = declared.images.array is not None
    _check_output(output, in_array=in_array, force=force)
    masks = written(loaded.study, answers_of(loaded.study, loaded.model, features))
    ids = [column for column in (declared.contributor, declared.entry) if column in frame.columns]
    if in_array:
        kept = {column: np.array(frame[column].to_list()) for column in ids}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{**kept, name: masks})  # type: ignore[arg-type]
        write_atomic(output, buffer.getvalue())
        return len(masks)
    base = Path(table).parent
    column, folder = declared.images.column, declared.images.folder
    assert column is not None
    assert folder is not None
    names = frame[column].cast(pl.String).str.strip_chars().to_list()
    targets = _names(names, output)
    output.mkdir(parents=True, exist_ok=True)
    for picture, target, mask in zip(names, targets, masks, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, _png(mask, picture_size(base / folder / picture)))
    said = [target.relative_to(output).as_posix() for target in targets]
    rows = frame.select(*ids, column).with_columns(pl.Series(name, said))
    write_atomic(output / TABLE, rows.write_csv())
    return len(masks)


def default_output(declared: SourceSpec) -> str:
    """Say what a mask's output looks like, for messages."""
    return "FILE.npz" if declared.images is not None and declared.images.array is not None else "FOLDER"


def _check_output(output: Path, *, in_array: bool, force: bool) -> None:
    if in_array and (output.suffix.lower() != ".npz" or output.is_dir()):
        raise InputError(
            f"masks of an array go into a .npz file, not into {output.name!r}",
            where=str(output),
            expected="--output FILE.npz",
        )
    if not in_array and (output.suffix.lower() == ".npz" or output.is_file()):
        raise InputError(
            f"masks of picture files go into a folder, not into {output.name!r}",
            where=str(output),
            expected="--output FOLDER",
        )
    there = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if there and not force:
        raise InputError(
            f"{output} exists",
            where=str(output),
            expected="a new file" if in_array else "a new or empty folder",
            remedy="choose another name, or give --force",
        )


def _names(pictures: list[str], output: Path) -> list[Path]:
    """The mask file of each picture: its name with .png, in the same folder below the output."""
    targets: dict[Path, str] = {}
    for picture in pictures:
        place = PurePosixPath(picture).with_suffix(".png")
        if place.is_absolute() or ".." in place.parts:
            raise InputError(
                f"the picture {picture!r} lies outside its folder",
                where="the table",
                expected="names below the declared folder of pictures, so that masks stay below the output",
            )
        target = output / place
        if target in targets:
            raise InputError(
                f"{targets[target]!r} and {picture!r} would have one mask file, {place.as_posix()!r}",
                where="the table",
                expected="every picture once, and names that differ before their ending",
                remedy="predict them in two tables",
            )
        targets[target] = picture
    return list(targets)


def _png(mask: npt.NDArray[Any], size: tuple[int, int]) -> bytes:
    """A label image of the picture's own size; each pixel takes the nearest one's class."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("masks are written by Pillow, which is not installed", "imaging") from error
    buffer = io.BytesIO()
    Image.fromarray(mask).resize(size, Image.Resampling.NEAREST).save(buffer, format="PNG")
    return buffer.getvalue()
