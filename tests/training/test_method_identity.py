"""What a run calls its methods: functions of one name and other code are others, in every process alike."""

from __future__ import annotations

import copy
import functools
import operator
import os
import re
import subprocess
import sys
from collections import deque
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import small_plan

from confide.errors import InputError
from confide.training import Augmentation, Averaging, ContributorDataset, Methods, PrivateRun
from confide.training.methods.identity import in_words

SOURCE = """
import functools, torch
SCALE = 2
def near(x): return x * NEAR
def jitter(x, numbers):
    "Add what is not much."
    size = {"a", "b", "c", "d"}
    return near(x) + 0.1 * numbers[:, :1] if "a" in {"a", "b", "c"} else [y for y in x]
class Turn:
    def __init__(self, angle): self.angle, self.kinds = angle, {"left", "right", "up", "down"}
    def __call__(self, x, numbers): return x * self.angle
def made(factor):
    def inner(x, numbers): return x * factor
    return inner
every = [jitter, Turn(3.0), made(0.5), made(torch.arange(3.0)), functools.partial(jitter, numbers=4),
         lambda x, n: x, Turn(1).__call__, torch.nn.functional.relu, torch.nn.Dropout(0.25), torch.relu]
"""


class Slotted:
    """Keeps its value in a slot; prints by its address."""

    __slots__ = ("__hidden", "value")

    def __init__(self, value):
        self.value = self.__hidden = value


def test_objects_without_attributes_of_their_own_are_known_by_slots_or_print():
    both = [
        (torch.float16, torch.float32),
        (range(3), range(4)),
        (operator.itemgetter(1), operator.itemgetter(2)),
        (Path("a"), Path("b")),
        (re.compile("a"), re.compile("b")),
        (Decimal(1), Decimal(2)),
        (timedelta(1), timedelta(2)),
        (deque([1]), deque([2])),
        (bytearray(b"a"), bytearray(b"b")),
        (torch.device("cpu"), torch.device("meta")),
        (Slotted(1), Slotted(2)),
        (slice(1), slice(2)),
    ]
    for one, other in both:
        assert in_words(one) != in_words(other), one
        assert in_words(functools.partial(print, d=one)) != in_words(functools.partial(print, d=other))
        assert in_words(one) == in_words(copy.deepcopy(one)) and "0x" not in in_words(one)


def functions(source=SOURCE, near="3"):
    place = {"__name__": "users_module"}
    exec(compile(source.replace("NEAR", near), "users_module.py", "exec"), place)
    return place["every"]


def test_functions_of_one_name_and_other_code_are_others():
    def made(factor, power=1):
        def inner(x, numbers, shift=0):
            return factor * x**power + shift

        return inner

    def other(factor, power=1):
        def inner(x, numbers, shift=0):
            return factor + x**power + shift

        inner.__qualname__ = made(1).__qualname__
        return inner

    shifted = made(1)
    shifted.__defaults__ = (5,)
    double, treble = (lambda x, n: 2 * x), (lambda x, n: 3 * x)
    plus, minus = (lambda x, n: x + n), (lambda x, n: x - n)
    sine, cosine = (lambda x, n: x.sin()), (lambda x, n: x.cos())
    dropout = nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.2))
    torch.manual_seed(0)
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    different = [
        *(double, treble, plus, minus, sine, cosine, *dropout, *layers),
        *(made(1), made(2), made(1, 2), other(1), shifted, made(torch.ones(2)), made(torch.zeros(2))),
        *(made(np.ones(2)), made(np.ones((2, 1))), made(double), made(treble)),
        *(functools.partial(made(1), shift=1), functools.partial(made(1), shift=2)),
    ]
    said = [in_words(one) for one in different]
    assert len(set(said)) == len(said)
    assert in_words(made(1)) == in_words(made(1)) and in_words(double) == in_words(lambda x, n: 2 * x)
    assert in_words(made(torch.ones(2))) == in_words(made(torch.ones(2)))
    # what a function of its own module does belongs to what it does
    (jitter, *_), (changed, *_) = functions(), functions(near="4")
    assert in_words(jitter) != in_words(changed)


def test_place_comments_and_documentation_do_not_matter():
    moved = "\n\n# a comment\n" + SOURCE.replace("Add what is not much.", "Add hardly anything.")
    assert [in_words(one) for one in functions()] == [in_words(one) for one in functions(moved)]


@pytest.mark.slow
def test_other_processes_say_the_same():
    """Sets have another order there, and everything lies elsewhere in memory."""
    code = (
        "import sys; from test_method_identity import functions, in_words; print(*map(in_words, functions()), sep='|')"
    )
    here = "|".join(map(in_words, functions()))
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "4711"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == here and " at 0x" not in here


def test_what_refers_to_itself_is_described():
    def around(x, numbers):
        return around(x, numbers) if len(x) > held["most"] else x

    held = {"most": 3}
    held["self"] = held
    assert in_words(around) == in_words(around)

    def compiled(*arguments):  # as torch.compile gives it: around objects that differ from process to process
        return around(*arguments)

    compiled._torchdynamo_orig_callable = around
    assert in_words(compiled) == f"compiled[{in_words(around)}]"


@settings(max_examples=20, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=2), inner,
                                                                                           max_size=3)))  # fmt: skip
def test_a_function_is_known_by_the_plain_values_it_closes_over(value):
    def made(held):
        return lambda x, n: (x, held)

    assert in_words(made(value)) == in_words(made(value))
    assert in_words(made(value)) != in_words(made((value, 1)))


def test_a_run_does_not_go_on_with_another_function_of_the_same_name(tmp_path):
    x = torch.arange(24.0).reshape(12, 2) / 24
    data = ContributorDataset(TensorDataset(x, x[:, 0]), [f"c{i}" for i in range(12)])

    def run(transform, **settings):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        views = Methods(augmentation=Augmentation(views=2, transform=transform), averaging=Averaging())
        return PrivateRun(
            model, lambda out, y: (out.squeeze(1) - y) ** 2, torch.optim.SGD(model.parameters(), lr=0.1),
            small_plan("contributor", {1: 12}, steps=4, noise_multiplier=1.0, epsilon=30.0), data, seed=1,
            checkpoint=tmp_path / "c", methods=views, **settings,
        )  # fmt: skip

    seen = []

    def first(x, numbers):
        seen.append(len(x))  # what it remembers while it runs does not make it another
        return x + 0.1 * numbers[:, :1].to(x.dtype)

    def second(x, numbers):
        seen.append(len(x))
        return x - 0.1 * numbers[:, :1].to(x.dtype)

    second.__name__, second.__qualname__ = first.__name__, first.__qualname__
    begun = run(first)
    for batch in begun:
        begun.take(batch)
    assert begun.steps_done == 4 and seen
    seen.clear()
    assert run(first, resume=True).steps_done == 4
    with pytest.raises(InputError, match="the methods changed"):
        run(second, resume=True)
