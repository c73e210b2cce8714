"""Named models: shapes, public initial weights, clear refusals, and that private training accepts each of them."""

from __future__ import annotations

import copy

import pytest
import torch

from confide import nn
from confide.errors import InputError
from confide.training import ClippingEngine

CASES = [
    ("logistic", 5, 1, {}),
    ("logistic", (2, 3), 4, {}),
    ("mlp", 5, 3, {"hidden": [7, 4], "dropout": 0.1, "activation": "gelu"}),
    ("mlp", (1, 4, 4), 2, {"hidden": 6}),
    ("cnn", (3, 9, 7), 2, {"widths": [8, 8]}),
]


@pytest.mark.parametrize(("name", "inputs", "outputs", "options"), CASES)
def test_shapes_and_rules(name, inputs, outputs, options):
    model = nn.build(name, inputs, outputs, **options)
    shape = (inputs,) if isinstance(inputs, int) else inputs
    assert model(torch.randn(6, *shape)).shape == (6, outputs)
    assert ClippingEngine(model).whole_graph_parameters() == []


def test_initial_weights_are_public_and_leave_the_callers_random_numbers_alone():
    assert all(bool((p == 0).all()) for p in nn.build("logistic", 4, 2).parameters())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = nn.build("mlp", 4, 2), nn.build("mlp", 4, 2), nn.build("mlp", 4, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("logistik", 4, 2, {}), "did you mean 'logistic'"),
        (("mlp", 4, 2, {"hiden": 3}), "did you mean 'hidden'"),
        (("mlp", 4, 2, {"activation": "tahn"}), "did you mean 'tanh'"),
        (("mlp", 4, 2, {"hidden": [0]}), "widths of 1 or more"),
        (("mlp", 4, 2, {"dropout": 1.5}), "dropout"),
        (("cnn", 4, 2, {}), "channels, height, width"),
        (("cnn", (1, 8, 8), 2, {"widths": [6]}), "multiples of groups"),
        (("logistic", 0, 2, {}), "sizes of 1 or more"),
    ],
)
def test_refusals_say_what_to_do(call, words):
    name, inputs, outputs, options = call
    with pytest.raises(InputError, match=words):
        nn.build(name, inputs, outputs, **options)


def test_a_model_of_ones_own_can_be_registered():
    @nn.register("line for a test")
    def line(inputs, outputs, *, bias=True):
        return torch.nn.Linear(inputs[0], outputs, bias=bias)

    assert nn.build("line for a test", 3, 1, bias=False).bias is None
    assert "line for a test" in nn.names()


def test_a_small_net_says_which_channels_it_was_made_for_and_saves_weights_as_before():
    model = nn.build("cnn", (3, 8, 8), 2)
    with pytest.raises(InputError, match="entries with 1 channel"):
        model(torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"\(entries, 3, 8, 8\)"):
        model(torch.zeros(3, 8, 8))
    assert next(iter(model.state_dict())) == "0.weight"
    assert copy.deepcopy(model)(torch.zeros(1, 3, 5, 5)).shape == (1, 2)
    assert model[:3](torch.zeros(1, 3, 4, 4)).shape == (1, 16, 4, 4)
