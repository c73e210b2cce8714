"""The example studies declare exactly the ready-made columns, and their public counts are the real ones."""

import tomllib
from pathlib import Path

import pytest

from confide.contributors import ContributorIndex
from confide.data import Schema, SourceSpec, declaration, read_sources

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", ["pbcseq", "icu"])
def test_examples_are_true_to_their_data(name):
    study = tomllib.loads((EXAMPLES / f"{name}.toml").read_text(encoding="utf-8"))
    assert study["columns"] == tomllib.loads(declaration(name))["columns"]
    table = read_sources([SourceSpec(**source) for source in study["data"]], Schema.from_dict(study["columns"]))
    counts = {int(k): n for k, n in study["public"]["entry_counts"].items()}
    assert isinstance(table.index, ContributorIndex) and table.index.histogram() == counts
    assert max(counts) == study["public"]["max_entries"]
    assert table.index.n_contributors <= study["public"]["max_contributors"]
