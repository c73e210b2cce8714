"""Every registered architecture: unit gradients equal torch.func's, entries never touch each other, rules cover it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from architecture_cases import CASES, made
from torch import nn as torch_nn
from torch.nn.modules.batchnorm import _NormBase

from confide import nn
from confide.errors import InputError

ORACLE = Path(__file__).parents[1] / "training" / "training_oracle.py"
spec = importlib.util.spec_from_file_location("training_oracle", ORACLE)
assert spec is not None and spec.loader is not None
oracle = sys.modules.setdefault("training_oracle", importlib.util.module_from_spec(spec))
spec.loader.exec_module(oracle)

# Three contributors: one of three entries, one of one, one of two.
UNITS = np.array([0, 0, 0, 1, 2, 2])
WEIGHTS = np.array([1 / 3, 1 / 3, 1 / 3, 1.0, 0.5, 0.5])
CLIPS = np.array([0.05, 10.0, 0.3])
# Parameters that are added to every channel of a complex tensor have no rule of their own.
GENERAL: dict[str, list[str]] = {}


def test_every_registered_name_has_a_case():
    own = {name for name in nn.names() if not name.endswith("for a test")}
    assert own == {case[0] for case in CASES.values()}


COSTLY = "resnet9 plain sum"


@pytest.mark.parametrize("engine_kind", ["exact", "fast"])
@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c == COSTLY else c for c in CASES])
def test_gradients_of_contributors_equal_torch_func(case, engine_kind, monkeypatch):
    from confide.training.engine import types

    monkeypatch.setitem(types.AUTO, "cpu", engine_kind)
    model, shape = made(case), CASES[case][1]
    torch.manual_seed(2)
    x, y = torch.randn(len(UNITS), *shape), torch.randn(len(UNITS))
    engine = oracle.assert_matches(model, oracle.squared, (x,), y, UNITS, WEIGHTS, CLIPS, rtol=1e-3)
    assert [engine.names[i] for i in engine.whole_graph_parameters()] == GENERAL.get(case, [])


@pytest.mark.parametrize("case", CASES)
def test_the_output_of_an_entry_does_not_depend_on_the_others(case):
    model, shape = made(case), CASES[case][1]
    x = torch.randn(5, *shape)
    other = torch.randn(5, *shape) * 100
    other[2] = x[2]
    for mode in (True, False):
        model.train(mode)
        alone, among, elsewhere = model(x[2:3])[0], model(x)[2], model(other)[2]
        assert torch.allclose(alone, among, rtol=1e-4, atol=1e-5)
        assert torch.allclose(among, elsewhere, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, _NormBase) and getattr(m, "track_running_stats", True) for m in model.modules())


@pytest.mark.parametrize("case", CASES)
def test_names_seeds_and_what_is_saved(case):
    name, shape, outputs, options = CASES[case]
    before = torch.get_rng_state()
    first, second = (nn.build(name, shape, outputs, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert set(first.state_dict()) == {n for n, _ in first.named_parameters()}, "fixed constants are not released"
    assert not any(p.is_complex() for p in first.parameters())
    made_for = first(torch.randn(2, *shape)).shape
    assert tuple(made_for) == ((2, outputs, *shape[1:]) if name in ("unet", "monet") else (2, outputs))


WRONG = [
    (("smoothnet", (3, 8, 8), 2, {}), "smaller than its pooling"),
    (("resnet9", (1, 12, 12), 2, {}), "at least 16"),
    (("resnet9", (1, 16, 16), 2, {"groups": (32, 32)}), "4 stages"),
    (("resnet9", (1, 16, 16), 2, {"groups": 24}), "do not divide into 24 groups"),
    (("resnet9", (1, 16, 16), 2, {"weights": "standardized"}), "did you mean 'standardised'"),
    (("resnet9", (1, 16), 2, {}), r"\(channels, height, width\)"),
    (("wideresnet", (3, 32, 32), 2, {"depth": 18}), "6 n \\+ 4"),
    (("wideresnet", (3, 4, 4), 2, {}), "at least 8"),
    (("unet", (1, 28, 28), 1, {"levels": 3}), "multiples of 8"),
    (("unet", (1, 4, 4, 4), 1, {"levels": 3}), "smaller than its pooling"),
    (("unet", (1, 8), 1, {}), "depth, height, width"),
    (("monet", (1, 30, 30), 1, {}), "multiples of 4"),
    (("vit", (1, 30, 30), 1, {}), "do not tile"),
    (("vit", (1, 32, 32), 1, {"heads": 5}), "divide width"),
    (("slices", (1, 28, 28), 1, {}), r"\(channels, depth, height, width\)"),
    (("slices", (1, 28, 28, 8), 1, {"backbone": "resnet9"}), "at least 16"),
    (("slices", (1, 28, 28, 28), 1, {"backbone": "resnet8"}), "did you mean 'resnet9'"),
    (("complex-cnn", (1, 32, 32), 1, {"representation": "pairs"}), 'representation = "kspace"'),
    (("complex-cnn", (1, 2, 2), 1, {}), "smaller than its pooling"),
    (("scattering", (1, 6, 28), 1, {}), "at least 8"),
    (("scattering", (1, 28, 28), 1, {"groups": 5}), "do not divide"),
    (("hog", (1, 4, 28), 1, {}), "at least 8"),
    (("graphsage", (9,), 1, {}), r"\(vertices, features\)"),
    (("smothnet", (3, 32, 32), 1, {}), "did you mean 'smoothnet'"),
]


@pytest.mark.parametrize(("call", "words"), WRONG)
def test_what_does_not_fit_is_refused_in_words(call, words):
    name, inputs, outputs, options = call
    with pytest.raises(InputError, match=words):
        nn.build(name, inputs, outputs, **options)


@pytest.mark.parametrize("case", ["smoothnet", "resnet9", "wideresnet", "unet 3d", "monet", "vit", "slices", "hog"])
def test_batches_of_another_shape_are_refused_in_words(case):
    model, shape = made(case), CASES[case][1]
    with pytest.raises(InputError, match="channels come first"):
        model(torch.randn(2, shape[0] + 1, *shape[1:]))
    with pytest.raises(InputError, match="a batch of shape"):
        model(torch.randn(2, *shape, 1))


def test_a_module_that_mixes_entries_would_be_seen():
    """The check above is not blind: the same net with batch normalisation fails it."""
    model = torch_nn.Sequential(torch_nn.Linear(3, 4), torch_nn.BatchNorm1d(4))
    x, other = torch.randn(5, 3), torch.randn(5, 3) * 100
    other[2] = x[2]
    assert not torch.allclose(model(x)[2], model(other)[2], rtol=1e-4, atol=1e-5)
