"""Masks: a class for every pixel of a picture, as label images, ``.npy`` files or an array of a ``.npz`` file.

A pixel holds one of the classes that the study declares, as their values; any other value is refused. What comes out
are positions in the declared classes (or 0 and 1, with ``positive``) as bytes. Nothing is taken from the data: neither
the classes, nor how often they occur.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.data.arrays import file_of, read_named
from confide.data.convert import Origin, more
from confide.data.image_spec import ImageSpec
from confide.data.images import not_a_picture, picture_size
from confide.data.spec import ColumnSpec, SourceSpec
from confide.errors import InputError, MissingExtraError

U8 = npt.NDArray[np.uint8]
_UNKNOWN = 255
# A palette image holds numbers of its palette: these are its classes.
_LABEL_IMAGES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_OTHER_IMAGES = {"F": "decimal numbers", "LA": "grey with transparency", "PA": "a palette with transparency"}


def read_mask_files(
    masks: list[Path], pictures: list[Path], name: str, column: ColumnSpec, images: ImageSpec, origin: Origin
) -> U8:
    """Read one mask for each picture, and resize it with its picture (each pixel takes the nearest one's class).

    Parameters
    ----------
    masks, pictures : list of Path
        Files, row by row.
    name, column : str, ColumnSpec
        The label.
    images : ImageSpec
    origin : Origin

    Returns
    -------
    uint8 array, shape (n, height, width)

    Raises
    ------
    MissingExtraError
        Pillow is not installed.
    InputError
        A file that is no mask, has another size than its picture, or holds a value that is not a declared class.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("image folders need Pillow, which is not installed", "imaging") from error
    width, height = images.size[:2]
    out = np.empty((len(masks), height, width), dtype=np.uint8)
    for row, (path, picture) in enumerate(zip(masks, pictures, strict=True)):
        values, size = _values(path), picture_size(picture)
        if values.shape != (size[1], size[0]):
            raise InputError(
                f"the mask {path.name} is {values.shape[1]} x {values.shape[0]} pixels and its picture {picture.name} "
                f"{size[0]} x {size[1]}",
                where=origin.at(name, [row]),
                expected="a mask of the size of its picture (width x height): both are resized together",
                remedy="draw the mask on this picture, or resize it at the source without mixing classes",
            )
        found = _positions(values, column, f"the mask {path.name}", name, origin.at(name, [row]))
        out[row] = np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.NEAREST))
    return _two_sides(out, column)


def read_mask_array(path: Path, spec: SourceSpec, name: str, column: ColumnSpec, images: ImageSpec) -> U8:
    """Read the masks of a ``.npz`` file: the array of the label's name.

    Returns
    -------
    uint8 array, shape (n, height, width) or (n, depth, height, width)

    Raises
    ------
    InputError
        No such array, another size or number of masks than of pictures, a value that is not a declared class.
    """
    values = read_named(path, spec, name, f"[columns.{name}]")
    wanted = tuple(reversed(images.size))
    if values.shape[1:] in ((*wanted, 1), (1, *wanted)):
        values = values.reshape(len(values), *wanted)
    if values.shape[1:] != wanted:
        raise InputError(
            f"the array {name!r} holds masks of {' x '.join(map(str, values.shape[1:])) or 'one number'}",
            where=f"{path.name}, [columns.{name}]",
            expected=" x ".join(map(str, wanted)) + ", the declared size of the pictures (arrays are not resized)",
            remedy="write masks of the size of the pictures",
        )
    assert images.array is not None
    pictures = len(read_named(path, spec, images.array, "[[data]] images"))
    if len(values) != pictures:
        raise InputError(
            f"{file_of(spec)} holds {pictures} pictures and {len(values)} masks",
            where=f"{path.name}, [columns.{name}]",
            expected="one mask for each picture",
        )
    found = np.empty(values.shape, dtype=np.uint8)
    for row, mask in enumerate(values):
        found[row] = _positions(mask, column, f"mask {row + 1}", name, f"{path.name}, array {name!r}, entry {row + 1}")
    return _two_sides(found, column)


def mask_values(column: ColumnSpec) -> tuple[int, ...]:
    """Return what a pixel of a predicted mask holds: a class for each output, or for no and yes.

    With ``positive`` among more than two classes, no and yes are the first class that does not count and the first that
    does.
    """
    classes = tuple(int(value) for value in column.classes or () if not isinstance(value, str))
    if column.positive is None:
        return classes
    no = next(value for value in classes if value not in column.positive)
    return no, next(value for value in classes if value in column.positive)


def _values(path: Path) -> npt.NDArray[Any]:
    """Pixels of a mask file as they stand."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.suffix.lower() == ".npy":
        try:
            values: npt.NDArray[Any] = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path.name} is not a readable .npy file",
                where=str(path),
                expected="one array of whole numbers as numpy.save writes it (pickled objects are never read)",
                remedy="write it again with numpy.save",
            ) from error
        if values.ndim != 2:
            raise InputError(
                f"{path.name} holds an array of {values.ndim} dimensions",
                where=str(path),
                expected="a mask of shape (height, width)",
                remedy="write one class number for each pixel",
            )
        return values
    try:
        with Image.open(path) as opened:
            kind, mode, pages = opened.format, opened.mode, getattr(opened, "n_frames", 1)
            if pages == 1 and kind != "JPEG" and mode in _LABEL_IMAGES:
                return np.asarray(ImageOps.exif_transpose(opened))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise not_a_picture(path) from error
    said = f"{path.name} is a picture of mode {mode} ({_OTHER_IMAGES.get(mode, 'colour')})"
    if kind == "JPEG":
        said = f"{path.name} is a JPEG, whose pixels are not exact"
    elif pages > 1:
        said = f"{path.name} has {pages} pages, and a mask is one"
    raise InputError(
        said,
        where=str(path),
        expected="a label image: one channel of class numbers, as PNG or TIFF, or a .npy file",
        remedy="export the mask as a PNG label image",
    )


def _positions(values: npt.NDArray[Any], column: ColumnSpec, what: str, name: str, where: str) -> U8:
    """Position of every pixel's value in the declared classes."""
    classes = np.array(column.classes or (), dtype=np.int64)
    expected = "one of " + ", ".join(map(str, classes.tolist()))
    if values.dtype.kind not in "biu":
        raise InputError(
            f"{what} holds values of type {values.dtype}",
            where=where,
            expected=f"whole numbers: {expected}",
            remedy="write class numbers as whole numbers",
        )
    table = np.full(65536, _UNKNOWN, dtype=np.uint8)
    table[classes] = np.arange(len(classes), dtype=np.uint8)
    inside = (values >= 0) & (values <= 65535)
    out = np.where(inside, table[np.where(inside, values, 0).astype(np.int64)], _UNKNOWN).astype(np.uint8)
    wrong = np.argwhere(out == _UNKNOWN)
    if len(wrong):
        first = tuple(int(i) for i in wrong[0])
        place = ", ".join(
            f"{axis} {i + 1}" for axis, i in zip(("slice", "row", "column")[-len(first) :], first, strict=True)
        )
        raise InputError(
            f"{what} holds the value {int(values[first])} at {place}, which is not a declared class"
            + more(wrong[:, 0]).replace(" row", " pixel"),
            where=where,
            expected=expected,
            remedy=f"correct the mask, or declare the value under [columns.{name}] classes",
        )
    return out


def _two_sides(positions: U8, column: ColumnSpec) -> U8:
    """Positions as 0 and 1 where some classes count as positive."""
    if column.positive is None:
        return positions
    winning = np.array([value in column.positive for value in column.classes or ()], dtype=np.uint8)
    return np.ascontiguousarray(winning[positions])
