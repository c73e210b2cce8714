"""Triangle meshes: what readers and models both need of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from confide.errors import InputError


def mesh_edges(faces: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the edges of a triangle mesh, each once.

    Parameters
    ----------
    faces : int array, shape (faces, 3)
        Vertex numbers of every triangle.

    Returns
    -------
    int64 array, shape (edges, 2)
    """
    triangles = np.asarray(faces, dtype=np.int64)
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise InputError(f"faces of shape {triangles.shape}", where="faces", expected="(faces, 3) vertex numbers")
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])
    out: npt.NDArray[np.int64] = np.unique(np.sort(pairs, 1), axis=0)
    return out
