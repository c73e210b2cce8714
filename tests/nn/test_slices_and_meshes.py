"""Attention over slices and graphs of meshes: symmetries, padding, scale, and what published code got wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn as torch_nn

from confide import nn
from confide.errors import InputError, MissingExtraError


def volume_model(channels=1, **options):
    torch.manual_seed(0)
    return nn.slices((channels, 8, 9, 10), 2, features=8, heads=2, backbone_options={"widths": [8]}, **options)


def test_weights_of_all_three_orientations_sum_to_one():
    model, x = volume_model(), torch.randn(4, 1, 8, 9, 10)
    view = model.explain(x)
    assert [tuple(w.shape) for w in view.weights] == [(4, 8), (4, 9), (4, 10)]
    assert torch.allclose(torch.cat(view.weights, 1).sum(1), torch.ones(4), atol=1e-5)
    assert torch.allclose(view.logits, model(x), atol=1e-5)
    flat = model.explain(torch.zeros(1, 1, 8, 8, 8))  # nothing tells slices apart: all weigh the same
    assert torch.allclose(torch.cat(flat.weights, 1), torch.full((1, 24), 1 / 24), atol=1e-5)


def test_a_volume_of_28_voxels_has_84_slices():
    model = nn.slices((1, 28, 28, 28), 1, features=8, heads=2, backbone_options={"widths": [4], "groups": 2})
    view = model.explain(torch.zeros(1, 1, 28, 28, 28))
    assert sum(w.shape[1] for w in view.weights) == 84


def test_permuting_slices_changes_only_the_order_of_the_weights():
    features = torch.randn(3, 27, 8)
    order = torch.randperm(27)

    class Given(nn.SliceAttention):
        def slice_features(self, x):
            return self.given

    model = Given(torch_nn.Identity(), 8, 2, heads=2)
    x = torch.zeros(3, 1, 8, 9, 10)
    model.given = features
    first = model.explain(x)
    model.given = features[:, order]
    second = model.explain(x)
    assert torch.allclose(first.logits, second.logits, atol=1e-5)
    assert torch.allclose(torch.cat(first.weights, 1)[:, order], torch.cat(second.weights, 1), atol=1e-5)


def test_padding_gets_no_weight_and_no_say():
    model, x = volume_model(), torch.randn(2, 1, 8, 9, 10)
    mask = torch.ones(2, 27, dtype=torch.bool)
    mask[:, 20:] = False
    view = model.explain(x, mask)
    assert float(torch.cat(view.weights, 1)[:, 20:].abs().max()) == 0
    everything = model.explain(x, torch.ones(2, 27, dtype=torch.bool))
    assert torch.allclose(everything.logits, model(x), atol=1e-5)
    assert not torch.allclose(everything.logits, view.logits, atol=1e-5)
    with pytest.raises(InputError, match="at least one in each volume"):
        model(x, torch.zeros(2, 27, dtype=torch.bool))


def test_a_grey_volume_is_repeated_without_anything_to_train():
    """Released code repeats it by a convolution that is trained with the rest, and fails on three channels."""
    backbone = nn.build("cnn", (3, 8, 8), 8, widths=[4])
    model = nn.SliceAttention(backbone, 8, 2, heads=2, channels=3)
    grey = torch.randn(2, 1, 8, 8, 8)
    assert torch.allclose(model(grey), model(grey.repeat(1, 3, 1, 1, 1)), atol=1e-6)
    extra = {n.split(".")[0] for n, _ in model.named_parameters()}
    assert extra == {"backbone", "attention", "head"}
    assert nn.slices((3, 8, 8, 8), 1, features=8, heads=2)(torch.zeros(1, 3, 8, 8, 8)).shape == (1, 1)
    with pytest.raises(InputError, match="1 or 3"):
        model(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(InputError, match="divide features"):
        nn.SliceAttention(backbone, 8, 2, heads=3)


@pytest.mark.slow
def test_attention_finds_the_slices_with_the_lesion():
    """Synthetic volumes with a bright ball: the net tells them apart and looks at the slices that hold it."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"))

    def made(n):
        x, y = rng.normal(size=(n, 1, 16, 16, 16)), rng.integers(0, 2, n)
        centre = rng.integers(4, 12, (n, 3))
        for i in np.flatnonzero(y):
            x[i, 0][((grid - centre[i][:, None, None, None]) ** 2).sum(0) <= 9] += 3
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y), centre

    torch.set_num_threads(1)
    torch.manual_seed(0)  # the order of the rows
    model = nn.slices((1, 16, 16, 16), 1, features=16, heads=2, backbone_options={"widths": [8, 16], "groups": 4})
    x, y, _ = made(256)
    optimizer = torch.optim.NAdam(model.parameters(), lr=3e-3)
    for _ in range(8):
        for rows in torch.randperm(256).split(32):
            loss = torch_nn.functional.binary_cross_entropy_with_logits(model(x[rows]).squeeze(1), y[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x, y, centre = made(200)
    view = model.explain(x)
    score = view.logits.squeeze(1)
    auc = float((score[y == 1][:, None] > score[y == 0]).float().mean())
    hits = []
    for i in torch.nonzero(y).flatten().tolist():
        best = torch.cat([w[i] for w in view.weights]).topk(3).indices.tolist()
        hits.append(any(abs(s % 16 - centre[i][s // 16]) <= 3 for s in best))
    assert auc > 0.95
    assert np.mean(hits) > 0.8


TETRAHEDRON = nn.mesh_edges([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])


def test_edges_of_a_mesh_come_once():
    assert TETRAHEDRON.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    with pytest.raises(InputError, match="vertex numbers"):
        nn.mesh_edges([[0, 1]])


def test_a_layer_is_the_mean_of_the_neighbours_and_the_vertex_itself():
    model = nn.graphsage((4, 3), 2, width=5, layers=2, edges=TETRAHEDRON.tolist())
    x = torch.randn(4, 3)
    conv = model.convs[0]
    links = model._links(x[None], None)
    others = (x.sum(0) - x) / 3
    assert torch.allclose(conv(x, links), conv.lin_l(others) + conv.lin_r(x), atol=1e-5)


def test_vertices_have_no_order_and_padding_no_say():
    model = nn.graphsage((6, 3), 2, width=8)
    x = torch.randn(1, 6, 3)
    edges = torch.tensor([[[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]])
    order = torch.randperm(6)
    place = torch.argsort(order)
    assert torch.allclose(model(x, edges), model(x[:, order], place[edges]), atol=1e-5)
    assert torch.allclose(model(x, edges), model(x, edges.flip(2)), atol=1e-5), "edges have no direction"
    wider = torch.cat([x, 100 * torch.randn(1, 2, 3)], 1)
    padded = torch.cat([edges, torch.full((1, 3, 2), -1)], 1)
    mask = torch.tensor([[True] * 6 + [False] * 2])
    assert torch.allclose(model(x, edges), model(wider, padded, mask), atol=1e-4)


def test_the_size_of_a_body_is_seen():
    model = nn.graphsage((4, 3), 1, width=16, edges=TETRAHEDRON.tolist())
    # a fixed body: of 1,000 random ones two have a logit that hardly moves
    x = 100 * torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    small, large = model(x), model(2 * x)
    assert float((large - small).detach().abs().max()) > 0.1 * float(small.detach().abs().max())


def test_meshes_that_do_not_fit_are_refused_in_words(monkeypatch):
    model = nn.graphsage((4, 3), 1, width=4)
    with pytest.raises(InputError, match="without edges"):
        model(torch.zeros(1, 4, 3))
    with pytest.raises(InputError, match="not there"):
        model(torch.zeros(1, 4, 3), torch.tensor([[[0, 4]]]))
    with pytest.raises(InputError, match=r"\(1, edges, 2\)"):
        model(torch.zeros(1, 4, 3), torch.tensor([[0, 1]]))
    with pytest.raises(InputError, match="n, vertices, 3"):
        model(torch.zeros(1, 4, 2))
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'confide\[mesh\]'"):
        nn.graphsage((4, 3), 1)
