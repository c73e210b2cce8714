"""Pictures named by a column of a table (Pillow, extra ``imaging``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.data.convert import Origin, text_of
from confide.data.image_spec import ImageSpec
from confide.errors import InputError, MissingExtraError, nearest


def image_paths(frame: pl.DataFrame, spec: ImageSpec, origin: Origin, *, base: Path) -> list[Path]:
    """Return the file of each row; refuse rows without a name and files that are not there."""
    assert spec.column is not None
    assert spec.folder is not None
    return named_files(
        frame, spec.column, spec.folder, origin, base=base, what="mesh" if spec.mode == "mesh" else "image"
    )


def named_files(
    frame: pl.DataFrame, column: str, folder_name: str, origin: Origin, *, base: Path, what: str
) -> list[Path]:
    """Return the file in a folder that a column names in each row.

    Parameters
    ----------
    what : str
        What the files are, for messages: "image" or "mask".

    Raises
    ------
    InputError
        No such column or folder, a row without a name, a file that is not there.
    """
    if column not in frame.columns:
        close = nearest(column, frame.columns)
        raise InputError(
            f"unknown column {column!r}",
            where=origin.at(),
            expected=f"the column that names each row's {what} file",
            remedy=f"did you mean {close!r}?" if close else None,
        )
    folder = base / folder_name
    if not folder.is_dir():
        raise InputError(
            f"there is no {what} folder {folder_name!r}", where=str(folder), expected=f"a folder of {what} files"
        )
    paths: list[Path] = []
    for row, name in enumerate(text_of(frame[column]).to_list()):
        if name is None:
            article = "an" if what == "image" else "a"
            raise InputError(
                f"{article} {what} file name is missing", where=origin.at(column, [row]), expected="a file name"
            )
        path = folder / name
        if not path.is_file():
            raise InputError(
                f"there is no {what} file {name!r}",
                where=origin.at(column, [row]),
                expected=f"a file in {folder}",
                remedy="copy the file there, or leave the row out at the source",
            )
        paths.append(path.resolve())
    return paths


def picture_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a picture file as it is shown, without reading its pixels.

    Raises
    ------
    MissingExtraError
        Pillow is not installed.
    InputError
        The file is not a picture.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("image folders need Pillow, which is not installed", "imaging") from error
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations that swap the sides
    except (OSError, SyntaxError) as error:
        raise not_a_picture(path) from error
    return (height, width) if turned else (width, height)


def not_a_picture(path: Path) -> InputError:
    """Return the error of a file that Pillow cannot read."""
    return InputError(
        f"{path.name} is not a readable picture",
        where=str(path),
        expected="PNG, JPEG, TIFF or another format that Pillow reads",
        remedy="copy the file again, or leave its row out at the source",
    )


def read_images(paths: list[Path], spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Read pictures as float32 of shape (n, channels, height, width), scaled from -1 (black) to 1 (white).

    Raises
    ------
    MissingExtraError
        Pillow is not installed.
    InputError
        A file is not a picture, or holds values without a fixed scale.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("image folders need Pillow, which is not installed", "imaging") from error
    width, height = spec.size[:2]
    channels = 1 if spec.mode == "gray" else 3
    out = np.empty((len(paths), channels, height, width), dtype=np.float32)
    for row, path in enumerate(paths):
        try:
            with Image.open(path) as opened:
                picture: Any = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):
                    out[row] = _sixteen_bit(picture, path, (width, height))
                    continue
                if picture.mode == "F":
                    raise InputError(
                        f"{path.name} holds decimal numbers, whose scale is not fixed",
                        where=str(path),
                        expected="8-bit or 16-bit pictures",
                        remedy="convert it with a scale that is the same for every picture",
                    )
                resized = picture.convert("L" if channels == 1 else "RGB").resize(
                    (width, height), Image.Resampling.BILINEAR
                )
                pixels = np.asarray(resized, dtype=np.float32)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise not_a_picture(path) from error
        pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
        out[row] = pixels / 127.5 - 1.0
    return out


def _sixteen_bit(picture: Any, path: Path, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Scale by the full 16-bit range: the same for every picture, so nothing is learnt from one picture's own range."""
    from PIL import Image

    pixels = np.asarray(picture, dtype=np.float32)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise InputError(
            f"{path.name} holds values outside 0 to 65535", where=str(path), expected="16-bit unsigned values"
        )
    scaled = Image.fromarray(pixels / 32767.5 - 1.0).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float32)
