"""Regression from triangulated surfaces with GraphSAGE (torch-geometric, extra ``mesh``); one mesh is one entry.

>>> edges = mesh_edges([[0, 1, 2], [1, 2, 3]])
>>> edges.tolist()
[[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide._meshes import mesh_edges
from confide.errors import InputError, MissingExtraError
from confide.nn.parts import seeded
from confide.nn.registry import register

__all__ = ["MeshSAGE", "PackedMeshSAGE", "graphsage", "mesh_edges"]


def _sage(channels: int, out: int) -> nn.Module:
    try:
        from torch_geometric.nn import SAGEConv
    except ImportError as error:
        raise MissingExtraError("graph models need torch-geometric, which is not installed", "mesh") from error
    conv: Any = SAGEConv(channels, out)
    # Plain linear layers, which every clipping engine knows, in place of the library's own class.
    conv.lin_l, conv.lin_r = nn.Linear(channels, out), nn.Linear(channels, out, bias=False)
    layer: nn.Module = conv
    return layer


class MeshSAGE(nn.Module):
    """Layers of h_v <- norm(relu(W1 mean of the neighbours' h + W2 h_v)), then mean and maximum over the vertices.

    Coordinates stay in their own unit and no mesh is scaled. As a normalised layer forgets the size of a body, the
    first layer has no normalisation and the head sees its mean and maximum too.

    Parameters
    ----------
    features, outputs, width, layers : int
    edges : int array, shape (edges, 2), optional
        Edges of a public template that all meshes share; without it every call brings its own.

    References
    ----------
    Mueller et al.: Body fat estimation from surface meshes using graph neural networks, ShapeMI 2023. Hamilton, Ying,
    Leskovec: Inductive representation learning on large graphs, NeurIPS 2017.
    """

    edges: Tensor | None

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        width: int = 128,
        layers: int = 3,
        dropout: float = 0.0,
        edges: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.convs = nn.ModuleList(_sage(features if i == 0 else width, width) for i in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers - 1))
        head: list[nn.Module] = [nn.Linear(4 * width, width), nn.ReLU()]
        self.head = nn.Sequential(*head, *([nn.Dropout(dropout)] if dropout else []), nn.Linear(width, outputs))
        kept = None if edges is None else torch.as_tensor(np.asarray(edges, dtype=np.int64))
        if kept is not None and (kept.dim() != 2 or kept.shape[1] != 2 or bool((kept < 0).any())):
            raise InputError(
                f"edges of shape {tuple(kept.shape)}", where="model edges", expected="(edges, 2) vertex numbers"
            )
        self.register_buffer("edges", kept, persistent=False)

    def forward(self, nodes: Tensor, edges: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Give `outputs` numbers for each mesh.

        Parameters
        ----------
        nodes : tensor, shape (n, vertices, features)
            For example x, y, z in a unit that is the same for everybody.
        edges : int tensor, shape (n, edges, 2), optional
            Each edge once; rows of -1 are padding.
        mask : bool tensor, shape (n, vertices), optional
            False for padding.

        Returns
        -------
        tensor, shape (n, outputs)
        """
        if nodes.dim() != 3 or nodes.shape[2] != self.features:
            raise InputError(
                f"meshes of shape {tuple(nodes.shape)}", where="model", expected=f"(n, vertices, {self.features})"
            )
        links = self._links(nodes, edges)
        n, vertices = nodes.shape[:2]
        h = nodes.flatten(0, 1)
        readouts: list[Tensor] = []
        for i, conv in enumerate(self.convs):
            h = torch.relu(conv(h, links))
            h = self.norms[i - 1](h) if i else h
            if i in (0, len(self.convs) - 1):
                readouts += self._readout(h.unflatten(0, (n, vertices)), mask)
        out: Tensor = self.head(torch.cat(readouts[:2] + readouts[-2:], 1))
        return out

    def _links(self, nodes: Tensor, edges: Tensor | None) -> Tensor:
        """Both directions of all edges of the batch as one graph of n separate parts."""
        n, vertices = nodes.shape[:2]
        if edges is None:
            if self.edges is None:
                raise InputError(
                    "meshes came without edges",
                    where="model",
                    expected="edges of shape (n, edges, 2) with every call, or a public template's at the start",
                )
            edges = self.edges.expand(n, -1, -1)
        if edges.dim() != 3 or edges.shape[2] != 2 or len(edges) != n:
            raise InputError(f"edges of shape {tuple(edges.shape)}", where="model", expected=f"({n}, edges, 2)")
        if bool((edges >= vertices).any()):
            raise InputError(
                "an edge names a vertex that is not there", where="model edges", expected=f"numbers below {vertices}"
            )
        real = (edges >= 0).all(2)
        shifted = (edges + vertices * torch.arange(n, device=edges.device).reshape(-1, 1, 1))[real]
        return torch.cat([shifted, shifted.flip(1)]).t()

    @staticmethod
    def _readout(h: Tensor, mask: Tensor | None) -> list[Tensor]:
        if mask is None:
            return [h.mean(1), h.amax(1)]
        real = mask.unsqueeze(2)
        mean = (h * real).sum(1) / real.sum(1).clamp_min(1)
        return [mean, h.masked_fill(~real, -torch.inf).amax(1)]


class PackedMeshSAGE(nn.Module):
    """`MeshSAGE` for meshes with edges of their own, each packed into one array as a study file reads them.

    The first rows of an array are vertices, the others edges; the last column is 1 where there is one and 0 where there
    is padding. An edge row begins with its two vertex numbers.

    Parameters
    ----------
    inner : MeshSAGE
    vertices : int
        Rows of vertices.
    """

    def __init__(self, inner: MeshSAGE, vertices: int) -> None:
        super().__init__()
        self.inner, self.vertices = inner, vertices

    def forward(self, packed: Tensor) -> Tensor:
        """(n, vertices + edges, columns) to (n, outputs)."""
        if packed.dim() != 3 or packed.shape[1] <= self.vertices:
            raise InputError(
                f"meshes of shape {tuple(packed.shape)}",
                where="model",
                expected=f"(n, more than {self.vertices} rows, columns)",
            )
        rows, links = packed[:, : self.vertices], packed[:, self.vertices :]
        there = rows[..., -1] > 0
        # a mesh has a vertex: without one the largest value over its vertices would be none
        there = there | (torch.arange(self.vertices, device=packed.device) == 0)
        numbers = links[..., :2].long().clamp(0, self.vertices - 1)
        numbers = torch.where((links[..., -1] > 0).unsqueeze(2), numbers, -1)
        out: Tensor = self.inner(rows[..., : self.inner.features], numbers, there)
        return out


@register("graphsage")
def graphsage(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    width: int = 128,
    layers: int = 3,
    dropout: float = 0.0,
    edges: Sequence[Sequence[int]] | None = None,
    vertices: int | None = None,
    coordinates: int = 3,
    seed: int = 0,
) -> nn.Module:
    """GraphSAGE for meshes; see `MeshSAGE`.

    Parameters
    ----------
    inputs : tuple of int
        (vertices, features).
    outputs : int
    width, layers : int
    dropout : float
        In the head.
    edges : sequence of pairs, optional
        Edges of a public template mesh that every entry follows.
    vertices, coordinates : int
        For meshes with edges of their own, packed: rows of vertices, and columns that are coordinates; see
        `PackedMeshSAGE`. `confide train` fills them in from the declared meshes.
    seed : int
        Public seed of the initial weights.

    Raises
    ------
    MissingExtraError
        torch-geometric is not installed (``pip install 'confide[mesh]'``).
    """
    if len(inputs) != 2:
        raise InputError(
            f"model 'graphsage' got inputs of shape {inputs}", where="model", expected="(vertices, features)"
        )
    if width < 1 or layers < 2 or not 0 <= dropout < 1:
        raise InputError(
            f"width {width}, layers {layers}, dropout {dropout}",
            where="model",
            expected="a width of 1 or more, 2 layers or more, a dropout in [0, 1)",
        )
    if vertices is None:
        return seeded(
            seed, lambda: MeshSAGE(inputs[1], outputs, width=width, layers=layers, dropout=dropout, edges=edges)
        )
    if edges is not None or not 0 < vertices < inputs[0] or not 0 < coordinates < inputs[1]:
        raise InputError(
            f"vertices {vertices} and coordinates {coordinates} of packed meshes of shape {inputs}",
            where="model",
            expected="fewer than rows and columns, and no edges of a template beside them",
        )
    inner = seeded(seed, lambda: MeshSAGE(coordinates, outputs, width=width, layers=layers, dropout=dropout))
    assert isinstance(inner, MeshSAGE)
    return PackedMeshSAGE(inner, vertices)
