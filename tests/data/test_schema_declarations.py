"""What may be declared about columns and sources, and what is refused before any data is read."""

import datetime
import tomllib

import pytest
from pydantic import ValidationError

from confide.data import ColumnSpec, Schema, SourceSpec, declaration
from confide.errors import InputError

LABEL = {"role": "label", "classes": [0, 1]}


def test_feature_names_follow_the_declaration():
    schema = Schema.from_dict(
        {
            "a": {"type": "real", "bounds": [0, 1]},
            "b": {"type": "categorical", "categories": ["x", "y"], "missing": "indicator"},
            "c": {"type": "ordinal", "categories": [1, 2, 3]},
            "d": {"role": "ignore"},
            "e": {"role": "attribute"},
            "y": LABEL,
        }
    )
    assert schema.feature_names == ("a", "b=x", "b=y", "b is missing", "c")
    assert schema.n_outputs == 1
    assert Schema.from_dict({"y": {"role": "label", "classes": [0, 1, 2]}}).n_outputs == 3
    assert Schema.from_dict({"y": {"role": "label", "classes": [0, 1, 2], "positive": [1]}}).n_outputs == 1
    assert Schema.from_dict({"a": {"type": "real", "bounds": [0, 1]}}).n_outputs == 0


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(InputError, match=r"unknown key 'bonds'[\s\S]*columns\.a[\s\S]*did you mean 'bounds'"):
        Schema.from_dict({"a": {"type": "real", "bonds": [0, 1]}})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({}, "type is missing"),
        ({"type": "real"}, "needs bounds"),
        ({"type": "real", "bounds": [1, 1]}, "low below high"),
        ({"type": "real", "bounds": [2, 1]}, "low below high"),
        ({"type": "real", "bounds": [0, float("inf")]}, "finite"),
        ({"type": "real", "bounds": [0, float("nan")]}, "finite"),
        ({"type": "real", "bounds": ["a", "b"]}, "finite number"),
        ({"type": "real", "bounds": [0, 1], "fill": 2}, "outside the bounds"),
        ({"type": "real", "bounds": [0, 1], "scale": "log"}, "lower bound above 0"),
        ({"type": "real", "bounds": [0, 1], "categories": [1]}, "takes bounds"),
        ({"type": "categorical", "bounds": [0, 1]}, "needs categories"),
        ({"type": "categorical", "categories": ["a"], "bounds": [0, 1]}, "not bounds"),
        ({"type": "categorical", "categories": ["a", "a"]}, "none twice"),
        ({"type": "categorical", "categories": ["a"], "fill": "b"}, "not among"),
        ({"type": "categorical", "categories": ["a"], "scale": "log"}, "for numbers"),
        ({"type": "categorical", "categories": ["a"], "outside": "clip"}, "for numbers"),
        ({"type": "ordinal", "categories": ["a"]}, "at least two"),
        ({"type": "date", "bounds": ["2001-01-01", "soon"]}, "no date"),
        ({"type": "number", "bounds": [0, 1]}, "'real'"),
        ({"role": "label"}, "needs classes"),
        ({"role": "label", "classes": [1]}, "at least two"),
        ({"role": "label", "classes": [0, 1], "positive": [2]}, "not among the classes"),
        ({"role": "label", "classes": [0, 1], "positive": [0, 1]}, "not all"),
        ({"role": "label", "classes": [0, 1], "missing": "indicator"}, "always refused"),
        ({"type": "real", "bounds": [0, 1], "positive": [1]}, "belong to the label"),
        ({"type": "real", "bounds": [0, 1], "missing": "guess"}, "'refuse'"),
    ],
)
def test_a_wrong_declaration_is_refused(column, message):
    with pytest.raises(InputError, match=message):
        Schema.from_dict({"a": column})


def test_two_labels_are_refused():
    with pytest.raises(InputError, match="more than one label: y, z"):
        Schema.from_dict({"y": LABEL, "z": LABEL})


def test_dates_may_be_toml_dates_or_text():
    one = ColumnSpec(type="date", bounds=(datetime.date(2001, 1, 1), datetime.date(2001, 1, 11)))
    two = ColumnSpec(type="date", bounds=("2001-01-01", "2001-01-11"))
    assert one.low_high == two.low_high and one.low_high[1] - one.low_high[0] == 10


def test_everything_declared_is_listed_as_assumed_public():
    schema = Schema.from_dict(
        {
            "a": {
                "type": "real",
                "bounds": [1, 9],
                "missing": "indicator",
                "fill": 3,
                "outside": "clip",
                "scale": "log",
            },
            "d": {"type": "date", "bounds": ["2001-01-01", "2002-01-01"], "missing": "indicator"},
            "s": {"type": "categorical", "categories": ["f", "m"], "missing": "indicator"},
            "consent": {"role": "attribute"},
            "skip": {"role": "ignore"},
            "y": {"role": "label", "classes": [0, 1, 2], "positive": [2]},
        }
    )
    facts = {fact["what"]: fact["value"] for fact in schema.assumed_public()}
    assert facts["column 'a': bounds (logarithmic scale)"] == [1, 9]
    assert facts["column 'a': constant in place of a missing value, with a 0/1 column"] == 3
    assert facts["column 'a': values outside the bounds are moved to the nearest bound"] is True
    assert facts["column 'd': bounds"] == ["2001-01-01", "2002-01-01"]
    assert facts["column 's': categories"] == ["f", "m"]
    assert facts["column 's': constant in place of a missing value, with a 0/1 column"] == "no category"
    assert facts["column 'y': classes of the label"] == [0, 1, 2]
    assert facts["column 'y': classes that count as positive"] == [2]
    assert not any("consent" in what or "skip" in what for what in facts)
    assert all(set(fact) == {"what", "value", "source"} for fact in schema.assumed_public())


@pytest.mark.parametrize("name", ["pbcseq", "icu", "nafld_yearly"])
def test_ready_made_declarations_are_valid_and_have_a_label(name):
    schema = Schema.from_dict(tomllib.loads(declaration(name))["columns"])
    assert schema.label is not None and schema.features


def test_a_declaration_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="no declaration for 'mnist'"):
        declaration("mnist")


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("named:pbcseq", "named"),
        ("a/b.csv", "csv"),
        ("b.csv.gz", "csv"),
        ("c.parquet", "parquet"),
        ("sqlite:///x.sqlite", "sql"),
        ("env:DB", "sql"),
    ],
)
def test_the_source_tells_its_reader(source, kind):
    query = "select 1" if kind == "sql" else None
    assert SourceSpec(source=source, contributor="id", query=query).kind == kind


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "sqlite:///x.sqlite"}, "needs a query"),
        ({"source": "a.csv", "query": "select 1"}, "belongs to a database"),
        ({"source": "a.csv", "entry_unique": True}, "needs an entry column"),
        ({"source": "a.csv", "images": {"folder": "f", "column": "c", "size": [0, 3]}}, "at least 1"),
        ({"source": "a.csv", "separator": "x"}, "';'"),
        ({"source": "a.csv", "sha256": "abc"}, "pattern"),
    ],
)
def test_a_wrong_source_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        SourceSpec(contributor="id", **fields)


def test_a_password_in_the_study_is_refused_and_not_repeated():
    with pytest.raises(ValidationError, match="environment variable") as caught:
        SourceSpec(source="postgresql://ada:hunter2@db/visits", contributor="id", query="select 1")
    assert "hunter2" not in str(caught.value)
    SourceSpec(source="postgresql://ada@db/visits", contributor="id", query="select 1")
