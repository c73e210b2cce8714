"""Published sets that the papers used and that are not vendored: CIFAR-10 and the Segmentation Decathlon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError, MissingExtraError
from confide.studies.gallery.images import Labelled, Splits

F32 = npt.NDArray[np.float32]

_SIDE, _RECORD = 32, 1 + 3 * 32 * 32
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
# Public constants to standardise by: mean and deviation of the published training pixels.
_MEAN: F32 = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32)
_DEVIATION: F32 = np.array([0.2470, 0.2435, 0.2616], dtype=np.float32)


def is_cifar10(folder: Path) -> bool:
    """Whether this folder holds CIFAR-10 in its binary version."""
    return (folder / _TRAIN[0]).is_file()


def read_cifar10(folder: Path) -> Splits:
    """Read the binary version of CIFAR-10 (data_batch_1.bin to data_batch_5.bin and test_batch.bin).

    The Python version holds pickles, which can run any code and are never read.

    Raises
    ------
    InputError
        A file is missing or of another length, or a label above 9.
    """
    parts = [_records(folder / name) for name in (*_TRAIN, "test_batch.bin")]
    train = Labelled(np.concatenate([p.x for p in parts[:-1]]), np.concatenate([p.y for p in parts[:-1]]))
    return Splits(train, train.take(slice(0, 0)), parts[-1])


def _records(file: Path) -> Labelled:
    if not file.is_file():
        raise InputError(
            f"{file.parent} has no file {file.name}",
            where="--data",
            expected="the binary version of CIFAR-10: data_batch_1.bin to data_batch_5.bin and test_batch.bin",
            remedy="unpack cifar-10-binary.tar.gz (the Python version holds pickles, which are not read)",
        )
    raw = np.frombuffer(file.read_bytes(), np.uint8)
    if raw.size == 0 or raw.size % _RECORD or raw.reshape(-1, _RECORD)[:, 0].max() > 9:
        raise InputError(f"{file.name} is no file of CIFAR-10", where="--data", expected=f"records of {_RECORD} bytes")
    rows = raw.reshape(-1, _RECORD)
    x = rows[:, 1:].reshape(-1, 3, _SIDE, _SIDE).astype(np.float32) / np.float32(255.0)
    x = (x - _MEAN[:, None, None]) / _DEVIATION[:, None, None]
    return Labelled(x, rows[:, 0].astype(np.int64))


def decathlon_cases(folder: Path) -> list[Path]:
    """Return the training images of a task of the Medical Segmentation Decathlon, one file a person, in their order.

    Raises
    ------
    InputError
        Fewer than ten such files.
    """
    # files that begin with a dot are what a Mac leaves beside them
    found = sorted(p for p in (folder / "imagesTr").glob("*.nii.gz") if not p.name.startswith("."))
    if len(found) < 10:
        raise InputError(
            f"{folder} holds {len(found)} files imagesTr/*.nii.gz",
            where="--data",
            expected="a folder of the Medical Segmentation Decathlon, such as Task03_Liver, with ten cases or more",
        )
    return found


def read_nifti(file: Path) -> Any:
    """Open a NIfTI file; its values are read slice by slice through ``dataobj``.

    Raises
    ------
    MissingExtraError
        nibabel is not installed.
    InputError
        No NIfTI file.
    """
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError("NIfTI files need nibabel, which is not installed", "imaging") from error
    if not file.is_file():
        raise InputError(
            f"there is no file {file.name}", where=str(file.parent), expected="a label file for each image"
        )
    try:
        return nibabel.load(file)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise InputError(f"{file.name} is no NIfTI file", where=str(file.parent)) from error


def shrink(image: npt.NDArray[Any], size: int) -> F32:
    """Average an image (height, width) over equal blocks to size x size; what does not divide is cut off evenly.

    Raises
    ------
    InputError
        An image smaller than that.
    """
    if min(image.shape) < size:
        raise InputError(f"a slice of {image.shape[0]} x {image.shape[1]}", expected=f"{size} x {size} or more")
    for axis in (0, 1):
        each = image.shape[axis] // size
        first = (image.shape[axis] - each * size) // 2
        image = np.take(image, range(first, first + each * size), axis=axis)
        shape = [*image.shape[:axis], size, each, *image.shape[axis + 1 :]]
        image = image.reshape(shape).mean(axis=axis + 1)
    return image.astype(np.float32)
