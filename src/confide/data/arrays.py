"""Pictures and volumes in the arrays of a ``.npz`` file, as benchmark sets come (MedMNIST, for example).

``file.npz#train_`` means the arrays ``train_images``, ``train_labels``, ... by the names ``images``, ``labels``, ...:
arrays with one value for each entry become columns, the one that ``images = {array = "images"}`` names the pictures.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.data.convert import more
from confide.data.image_spec import ImageSpec
from confide.data.spec import SourceSpec
from confide.errors import InputError, nearest

__all__ = ["file_of", "read_array", "read_columns", "read_named"]


def file_of(spec: SourceSpec) -> str:
    """Return the source's file without the part after ``#``, which only a .npz source has."""
    return spec.source.partition("#")[0] if spec.kind == "npz" else spec.source


def _arrays(path: Path, spec: SourceSpec, names: set[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Arrays whose names begin with the source's prefix, under the rest of the name; never anything pickled."""
    prefix = spec.source.partition("#")[2]
    try:
        with np.load(path, allow_pickle=False) as opened:
            held = {name[len(prefix) :]: name for name in opened.files if name.startswith(prefix) and name != prefix}
            if not held:
                raise InputError(
                    f"{path.name} holds no array whose name begins with {prefix!r}",
                    where=str(path),
                    expected="one of " + ", ".join(opened.files),
                )
            return {short: opened[name] for short, name in held.items() if names is None or short in names}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:  # TypeError: a plain .npy
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path.name} is not a readable .npz file",
            where=str(path),
            expected="arrays of numbers or text as numpy.savez writes them (pickled objects are never read)",
            remedy="write it again with numpy.savez",
        ) from error


def read_columns(path: Path, spec: SourceSpec) -> pl.DataFrame:
    """Return the arrays with one value for each entry as a table; of pictures alone, the numbers of the rows.

    Raises
    ------
    InputError
        A damaged file, no such array, columns of different lengths.
    """
    columns = {}
    pictures = set()
    for name, value in _arrays(path, spec).items():
        if value.ndim == 2 and value.shape[1] == 1:
            value = value[:, 0]
        if value.ndim == 1:
            columns[name] = value
        elif value.ndim > 2:
            pictures.add(len(value))
    if not columns and len(pictures) == 1:
        return pl.DataFrame({"row": np.arange(1, pictures.pop() + 1)})
    if not columns:
        raise InputError(
            f"{path.name} holds no array with one value for each entry",
            where=str(path),
            expected="labels of shape (n,) or (n, 1)",
            remedy="name the part of the file that holds them: source = 'file.npz#train_'",
        )
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"the arrays of {path.name} have different lengths: "
            + ", ".join(f"{name} {length}" for name, length in list(lengths.items())[:6]),
            where=str(path),
            expected="one value for each entry in all of them",
            remedy="name one part of the file: source = 'file.npz#train_'",
        )
    return pl.DataFrame(columns)


def read_named(path: Path, spec: SourceSpec, name: str, where: str) -> npt.NDArray[Any]:
    """Return one array of the source's part of the file, as it stands.

    Raises
    ------
    InputError
        A damaged file, or no such array.
    """
    found = _arrays(path, spec, {name})
    if name not in found:
        held = list(_arrays(path, spec))
        close = nearest(name, held)
        raise InputError(
            f"{path.name} holds no array {name!r}",
            where=where,
            expected="one of " + ", ".join(held),
            remedy=f"did you mean {close!r}?" if close else None,
        )
    return found[name]


def read_array(path: Path, spec: SourceSpec, images: ImageSpec) -> npt.NDArray[np.float32]:
    """Return the pictures as float32 of shape (n, *images.shape), scaled from -1 to 1.

    The scale is that of the type (0 to 255, 0 to 65535, no to yes) or the declared bounds: the same for every picture.

    Raises
    ------
    InputError
        No such array, another size or number of pictures than declared, values without a fixed scale or outside it.
    """
    name = images.array
    assert name is not None
    values = read_named(path, spec, name, "[[data]] images")
    flat = tuple(reversed(images.size))
    wanted = (*flat, 3) if images.mode == "rgb" else flat
    if images.mode == "gray" and values.shape[1:] == (*flat, 1):
        values = values[..., 0]
    if values.shape[1:] != wanted:
        raise InputError(
            f"the array {name!r} holds pictures of {' x '.join(map(str, values.shape[1:])) or 'one number'}",
            where="[[data]] images",
            expected=" x ".join(map(str, wanted)) + ", from the declared mode and size (arrays are not resized)",
        )
    rows = len(read_columns(path, spec))
    if len(values) != rows:
        raise InputError(
            f"{path.name} holds {len(values)} pictures and {rows} rows of labels", where=str(path), expected="as many"
        )
    out = _scaled(values, name, images.bounds)
    if images.mode == "points":
        return np.ascontiguousarray(out)
    return np.ascontiguousarray(np.moveaxis(out, -1, 1) if images.mode == "rgb" else out[:, None])


def _scaled(values: npt.NDArray[Any], name: str, bounds: tuple[float, float] | None) -> npt.NDArray[np.float32]:
    if bounds is None and values.dtype.kind == "u":
        bounds = (0.0, float(np.iinfo(values.dtype).max))
    if bounds is None and values.dtype.kind == "b":
        bounds = (0.0, 1.0)
    if bounds is None or values.dtype.kind not in "biuf":
        raise InputError(
            f"the array {name!r} holds values of type {values.dtype}, whose scale is not fixed",
            where="[[data]] images",
            expected="whole numbers without sign, or declared bounds",
            remedy="declare bounds = [low, high] in images, known without looking at the data",
        )
    low, high = bounds
    out = values.astype(np.float32)
    wrong = ~((out >= low) & (out <= high)).reshape(len(out), -1).all(1)
    if wrong.any():
        rows = np.flatnonzero(wrong)
        raise InputError(
            f"the array {name!r} holds a value outside {low:g} to {high:g}{more(rows)}",
            where=f"entry {int(rows[0]) + 1}",
            expected="finite values within the declared bounds",
        )
    return np.asarray(2 * (out - low) / (high - low) - 1, dtype=np.float32)
