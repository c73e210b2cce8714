"""Surfaces with edges of their own, a ``.npz`` file each: vertices, and faces or edges.

A mesh becomes one array of shape (most vertices + most edges, coordinates + 1): rows of vertices (coordinates, spread
over -1 to 1 by the declared bounds), then rows of edges (two vertex numbers, then zeros); the last column is 1 where
there is a vertex or an edge and 0 where there is padding. No mesh is scaled, moved or turned by itself.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide._meshes import mesh_edges
from confide.data.image_spec import ImageSpec
from confide.errors import InputError


def read_meshes(paths: list[Path], spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Read meshes as they are declared.

    Parameters
    ----------
    paths : list of Path
        ``.npz`` files with the arrays ``vertices`` (vertices, coordinates) and ``faces`` (faces, 3) or ``edges``
        (edges, 2), which hold vertex numbers from 0.
    spec : ImageSpec
        Of the mode "mesh".

    Returns
    -------
    float32 array, shape (n, most vertices + most edges, coordinates + 1)

    Raises
    ------
    InputError
        A file that is no mesh, has more vertices or edges than declared, coordinates outside the bounds, or an edge to
        a vertex that is not there.
    """
    assert len(spec.size) == 3
    assert spec.bounds is not None
    coordinates, most, links = spec.size
    low, high = spec.bounds
    out = np.zeros((len(paths), *spec.shape), dtype=np.float32)
    for row, path in enumerate(paths):
        vertices, edges = _mesh(path, coordinates)
        for what, count, limit in (("vertices", len(vertices), most), ("edges", len(edges), links)):
            if count > limit:
                raise InputError(
                    f"{path.name} has {count} {what}",
                    where=str(path),
                    expected=f"at most {limit}, as declared: size = [{coordinates}, {most}, {links}]",
                    remedy="declare a larger size, or make the surface coarser at the source",
                )
        if not ((vertices >= low) & (vertices <= high)).all():
            raise InputError(
                f"{path.name} holds a coordinate outside {low:g} to {high:g}",
                where=str(path),
                expected="finite coordinates within the declared bounds",
                remedy="declare bounds that hold for every body, known without looking at the data",
            )
        out[row, : len(vertices), :coordinates] = 2 * (vertices - low) / (high - low) - 1
        out[row, : len(vertices), -1] = 1
        out[row, most : most + len(edges), :2] = edges
        out[row, most : most + len(edges), -1] = 1
    return out


def _mesh(path: Path, coordinates: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Vertices and edges of one file."""
    try:
        with np.load(path, allow_pickle=False) as opened:
            held: dict[str, npt.NDArray[Any]] = {
                name: opened[name] for name in ("vertices", "faces", "edges") if name in opened.files
            }
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:  # TypeError: a plain .npy
        raise InputError(
            f"{path.name} is not a readable .npz file",
            where=str(path),
            expected="arrays of numbers as numpy.savez writes them (pickled objects are never read)",
            remedy="write it again: numpy.savez(file, vertices=..., faces=...)",
        ) from error
    points, links = held.get("vertices"), [name for name in ("faces", "edges") if name in held]
    if points is None or len(links) != 1 or points.ndim != 2 or points.shape[1] != coordinates or len(points) == 0:
        found = ", ".join(f"{name} {value.shape}" for name, value in held.items()) or "none of them"
        raise InputError(
            f"{path.name} holds {found}",
            where=str(path),
            expected=f"vertices of shape (vertices, {coordinates}), and either faces (faces, 3) or edges (edges, 2)",
            remedy="write it again: numpy.savez(file, vertices=..., faces=...)",
        )
    numbers = held[links[0]]
    wide = 3 if links[0] == "faces" else 2
    if numbers.dtype.kind not in "iu" or numbers.ndim != 2 or numbers.shape[1] != wide:
        raise InputError(
            f"the {links[0]} of {path.name} have the shape {numbers.shape} and the type {numbers.dtype}",
            where=str(path),
            expected=f"whole numbers of shape ({links[0]}, {wide})",
        )
    numbers = numbers.astype(np.int64)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(points)):
        raise InputError(
            f"the {links[0]} of {path.name} name a vertex that is not there",
            where=str(path),
            expected=f"vertex numbers from 0 to {len(points) - 1}",
            remedy="count vertices from 0",
        )
    edges = mesh_edges(numbers) if wide == 3 else np.unique(np.sort(numbers, 1), axis=0)
    return points.astype(np.float64), np.asarray(edges, dtype=np.int64).reshape(-1, 2)
