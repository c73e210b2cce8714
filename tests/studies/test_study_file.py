"""A study file with a mistake says what, where, what was expected and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
from clinic import STUDY

from confide.errors import InputError
from confide.studies import load_study, parse_study


def wrong(old: str, new: str) -> str:
    assert old in STUDY
    with pytest.raises(InputError) as caught:
        parse_study(STUDY.replace(old, new, 1))
    return str(caught.value)


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(STUDY.splitlines(), 1) if line.startswith(text))


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ("noise_multiplier", "noise_multiplyer", "noise_multiplier"),
        ("holdout", "hold_out", "holdout"),
        ("max_entries", "max_entry", "max_entries"),
        ("[optimizer]", "[optimiser]", "optimizer"),
        ("contributor = ", "contributer = ", "contributor"),
        ("bounds = ", "bound = ", "bounds"),
        ("checkpoint_every", "checkpoint_evry", "checkpoint_every"),
    ],
)
def test_unknown_key_names_the_nearest(old: str, new: str, near: str) -> None:
    assert f"did you mean {near!r}?" in wrong(old, new)


def test_the_line_is_named() -> None:
    assert f"line {line_of('noise_multiplier')}" in wrong("noise_multiplier", "noise_multiplyer")
    assert f"line {line_of('epsilon')}" in wrong("epsilon = 3.0", "epsilon = -1")


def test_values_out_of_range() -> None:
    assert "> 0" in wrong("epsilon = 3.0", "epsilon = 0")
    assert "privacy.steps" in wrong("steps = 30", "steps = 0")
    assert "delta" in wrong("delta = 1e-4", "delta = 2")
    assert "holdout" in wrong("holdout = 0.25", "holdout = 1.5")


def test_nobody_set_aside_pays_more_than_they_agreed_to() -> None:
    steps, levels = "steps = 30", 'steps = 30\nbudget = {column = "consent", levels = {basic = 0.4, full = 3.0}}'
    assert steps in STUDY and "holdout = 0.25" in STUDY
    chosen = STUDY.replace(steps, levels, 1)
    parse_study(chosen.replace("holdout = 0.25", "holdout = 0.25\nmetrics = {epsilon = 0.4}", 1))
    for old, new, says in (
        ("holdout = 0.25", "holdout = 0.25\nmetrics = {epsilon = 0.5}", "metrics"),
        ("[evaluation]", "[training]\ntemperature = {epsilon = 0.5}\n[evaluation]", "temperature"),
    ):
        with pytest.raises(InputError, match=r"agreed to 0\.4: buy it for 0\.4 or less") as caught:
            parse_study(chosen.replace(old, new, 1))
        assert says in str(caught.value)
    bought = chosen.replace("max_entries = 5", "max_entries = 5\nentry_counts = {epsilon = 0.1}", 1)
    with pytest.raises(InputError, match="beside the level that they agreed to"):
        parse_study(bought)


def test_what_a_model_in_shards_cannot_do_is_refused_before_a_price_is_asked() -> None:
    cut = ("checkpoint_every = 5", "checkpoint_every = 5\nshards = true")
    parse_study(STUDY.replace(*cut).replace("[engine]", '[training]\nclipping = "automatic"\n[engine]'))
    for old, new, says in (
        ("[engine]", "[training]\naveraging = 0.99\n[engine]", "[training] averaging"),
        ("[engine]", "[training]\nsnapshots = 3\n[engine]", "[training] snapshots"),
        ("steps = 30", 'steps = 30\nnoise = "secure"', '[privacy] noise = "secure"'),
    ):
        with pytest.raises(InputError, match="shards = true does not go with") as caught:
            parse_study(STUDY.replace(*cut).replace(old, new, 1))
        assert says in str(caught.value)


def test_not_toml() -> None:
    assert "not valid TOML" in wrong('"clinic"', "clinic")


def test_missing_parts() -> None:
    assert "max_entries" in wrong("max_entries = 5", "")
    assert "noise_multiplier is missing" in wrong("noise_multiplier = 1.5", "")


def test_delta_needs_a_public_bound() -> None:
    text = STUDY.replace("max_contributors = 100", "").replace("delta = 1e-4", "")
    with pytest.raises(InputError, match="max_contributors"):
        parse_study(text)


def test_unknown_baseline() -> None:
    assert "did you mean 'non-private'" in wrong("bootstrap = 60", 'bootstrap = 60\nbaselines = ["nonprivate"]')


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_study(tmp_path / "none.toml")


def test_a_name_cannot_leave_the_folder() -> None:
    assert "name" in wrong('name = "clinic"', 'name = "../clinic"')
