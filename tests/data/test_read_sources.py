"""Tables from every kind of source, and a clear refusal of every kind of bad input."""

import gzip
import sqlite3

import numpy as np
import polars as pl
import pytest

from confide.data import ColumnSpec, Schema, SourceSpec, find_file, read_features, read_sources
from confide.errors import InputError

SCHEMA = Schema.from_dict(
    {
        "x": {"type": "real", "bounds": [0, 10]},
        "sex": {"type": "categorical", "categories": ["f", "m"]},
        "y": {"role": "label", "classes": [0, 1, 2], "positive": [2]},
    }
)
CSV = "id,day,x,sex,y\n01,1,0,f,0\n1,1,10,m,2\n01,2,5,f,1\n"


@pytest.fixture
def write(tmp_path):
    def _write(text, name="t.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path

    return _write


def _spec(**fields):
    return SourceSpec(**{"source": "t.csv", "contributor": "id", "entry": "day", **fields})


def _read(base, schema=SCHEMA, **fields):
    return read_sources([_spec(**fields)], schema, base=base)


def _check(table):
    assert table.index.ids.tolist() == ["01", "1"]
    assert table.index.of_entry.tolist() == [0, 1, 0]
    assert table.features.dtype == np.float32
    assert table.features.tolist() == [[-1, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert table.labels.tolist() == [0, 1, 0]
    assert table.feature_names == ("x", "sex=f", "sex=m")
    assert len(table) == 3 and table.input_shape == (3,)


def test_csv_keeps_ids_as_text(write):
    _check(_read(write(CSV)))


def test_csv_gz_and_other_separators(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    _check(_read(tmp_path, source="t.csv.gz"))
    (tmp_path / "de.csv").write_text("﻿" + CSV.replace(",", ";").replace(";5;", ";5,0;"), encoding="utf-8")
    _check(_read(tmp_path, source="de.csv", separator=";", decimal=","))


def test_parquet(tmp_path):
    pl.read_csv(CSV.encode(), infer_schema=False).with_columns(
        pl.col("x").cast(pl.Float64), pl.col("y").cast(pl.Int32)
    ).write_parquet(tmp_path / "t.parquet")
    _check(_read(tmp_path, source="t.parquet"))


def _database(folder):
    with sqlite3.connect(folder / "h.sqlite") as db:
        db.execute("create table visits (id text, day int, x real, sex text, y int)")
        db.executemany(
            "insert into visits values (?,?,?,?,?)",
            [("01", 1, 0.0, "f", 0), ("1", 1, 10, "m", 2), ("01", 2, 5, "f", 1)],
        )
    db.close()


def test_sql(tmp_path, monkeypatch):
    _database(tmp_path)
    _check(_read(tmp_path, source="sqlite:///h.sqlite", query="select * from visits"))
    monkeypatch.setenv("HOSPITAL", f"sqlite:///{tmp_path / 'h.sqlite'}")
    _check(_read(tmp_path, source="env:HOSPITAL", query="select * from visits"))


def test_a_query_that_writes_changes_nothing(tmp_path):
    _database(tmp_path)
    with pytest.raises(InputError, match="returns no rows"):
        _read(tmp_path, source="sqlite:///h.sqlite", query="delete from visits")
    _check(_read(tmp_path, source="sqlite:///h.sqlite", query="select * from visits"))


def test_sources_share_contributors(write):
    base = write(CSV)
    write("id,day,x,sex,y\n1,7,10,m,2\n2,7,0,f,0\n", "u.csv")
    table = read_sources([_spec(), _spec(source="u.csv")], SCHEMA, base=base)
    assert table.index.ids.tolist() == ["01", "1", "2"]
    assert table.index.of_entry.tolist() == [0, 1, 0, 1, 2]
    assert [r.rows for r in table.report] == [3, 2] and [r.contributors for r in table.report] == [2, 2]


def test_a_source_with_and_one_without_entry_keys(write):
    base = write(CSV)
    write("id,x,sex,y\n1,10,m,2\n1,10,m,2\n", "u.csv")
    table = read_sources([_spec(), _spec(source="u.csv", entry=None)], SCHEMA, base=base)
    assert table.index.counts.tolist() == [2, 3]


def test_rows_as_units(write):
    table = _read(write(CSV), contributor="row", entry=None)
    assert table.index.counts.tolist() == [1, 1, 1]


def test_ordinals_follow_the_entry_key(write):
    table = _read(write("id,day,x,sex,y\n1,b,0,f,0\n1,a,0,f,0\n"))
    assert table.index.ordinals.tolist() == [1, 0] and table.entry_ids == ("b", "a")


def test_missing_values_by_the_declared_rule(write):
    schema = Schema.from_dict(
        {
            "x": {"type": "real", "bounds": [0, 10], "missing": "indicator", "fill": 10},
            "z": {"type": "real", "bounds": [0, 10], "missing": "indicator"},
            "sex": {"type": "categorical", "categories": ["f", "m"], "missing": "indicator"},
            "stage": {"type": "ordinal", "categories": ["i", "ii", "iii"], "missing": "indicator"},
        }
    )
    table = _read(write("id,day,x,z,sex,stage\n1,1,,NA,,iii\n1,2,5,nan,m,NULL\n"), schema)
    assert table.features.tolist() == [[1, 1, 0, 1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 1, 0, 0, 1]]
    assert table.report[0].filled == {"x": 1, "z": 2, "sex": 1, "stage": 1}
    assert table.labels is None
    assert table.frame["x"].null_count() == 1


def test_a_category_called_none_is_a_category(write):
    schema = Schema.from_dict({"c": {"type": "categorical", "categories": ["None", "some"]}})
    table = _read(write("id,day,c\n1,1,None\n1,2,some\n"), schema)
    assert table.features.tolist() == [[1, 0], [0, 1]]


def test_numbers_match_categories_however_written(write):
    schema = Schema.from_dict(
        {"c": {"type": "categorical", "categories": [0, 1]}, "b": {"type": "categorical", "categories": [False, True]}}
    )
    table = _read(write("id,day,c,b\n1,1,0.0,TRUE\n1,2,1,false\n"), schema)
    assert table.features.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert table.frame["c"].to_list() == ["0", "1"]


def test_text_categories_are_not_numbers(write):
    schema = Schema.from_dict({"c": {"type": "categorical", "categories": ["1", "01"]}})
    assert _read(write("id,day,c\n1,1,01\n1,2,1\n"), schema).features.tolist() == [[0, 1], [1, 0]]


def test_log_scale_and_dates(write):
    schema = Schema.from_dict(
        {
            "x": {"type": "real", "bounds": [1, 100], "scale": "log"},
            "d": {"type": "date", "bounds": ["2001-01-01", "2001-01-11"]},
        }
    )
    table = _read(write("id,day,x,d\n1,1,10,2001-01-06\n1,2,100,2001-01-01\n"), schema)
    np.testing.assert_allclose(table.features, [[0, 0], [1, -1]], atol=1e-6)


def test_clipped_values_are_counted(write):
    schema = Schema.from_dict({"x": {"type": "real", "bounds": [0, 10], "outside": "clip"}})
    table = _read(write("id,day,x\n1,1,-5\n1,2,inf\n1,3,5\n"), schema)
    assert table.features.tolist() == [[-1], [1], [0]]
    assert table.report[0].clipped == {"x": 2}


BAD = {
    "unknown column": ("id,day,xx,sex,y\n1,1,0,f,0\n", r"unknown column 'x'[\s\S]*did you mean 'xx'"),
    "missing id": ("id,day,x,sex,y\n1,1,0,f,0\n,2,0,f,0\n", r"contributor id is missing[\s\S]*'id', row 2 \(line 3\)"),
    "id NA": ("id,day,x,sex,y\n1,1,0,f,0\nNA,2,0,f,0\n", r"contributor id is missing"),
    "padded id": ("id,day,x,sex,y\n1,1,0,f,0\n 1,2,0,f,0\n", r"blanks around[\s\S]*row 2"),
    "missing entry": ("id,day,x,sex,y\n1,,0,f,0\n", r"entry key is missing[\s\S]*'day', row 1"),
    "duplicate pair": (
        "id,day,x,sex,y\n1,1,0,f,0\n2,1,0,f,0\n1,1,5,f,0\n",
        r"stands twice[\s\S]*row 1 \(line 2\) and t.csv, row 3 \(line 4\)",
    ),
    "missing value": (
        "id,day,x,sex,y\n1,1,0,f,0\n1,2,NaN,f,0\n1,3,,f,0\n",
        r"'x' has a missing value \(and 1 more row\)",
    ),
    "missing category": ("id,day,x,sex,y\n1,1,0,,0\n", r"'sex' has a missing value[\s\S]*refuse"),
    "missing label": ("id,day,x,sex,y\n1,1,0,f,\n", r"label 'y' is missing[\s\S]*row 1"),
    "outside bounds": ("id,day,x,sex,y\n1,1,10.5,f,0\n", r"10.5, outside its declared bounds[\s\S]*from 0 to 10"),
    "infinite": ("id,day,x,sex,y\n1,1,inf,f,0\n", r"outside its declared bounds"),
    "unknown class": ("id,day,x,sex,y\n1,1,0,f,3\n", r"'3', which is not a declared class[\s\S]*one of 0, 1, 2"),
    "unknown category": ("id,day,x,sex,y\n1,1,0,F,0\n", r"'F', which is not a declared category[\s\S]*one of f, m"),
    "text in a number": ("id,day,x,sex,y\n1,1,0,f,0\n1,2,five,f,0\n", r"'five', which is not a number[\s\S]*line 3"),
    "empty": ("", r"is empty"),
    "header only": ("id,day,x,sex,y\n", r"no rows"),
    "ragged": ("id,day,x,sex,y\n1,1,0,f,0,9,9\n", r"not a regular table"),
    "same name twice": ("id,day,x,x,y\n1,1,0,f,0\n", r"'x' stands twice"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_tables_are_refused(case, write):
    text, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        _read(write(text))
    assert caught.value.exit_code == 2


def test_whole_numbers_and_dates_are_checked(write):
    whole = Schema.from_dict({"x": {"type": "integer", "bounds": [0, 10]}})
    with pytest.raises(InputError, match=r"'1.5', which is not a whole number"):
        _read(write("id,day,x\n1,1,1.5\n"), whole)
    date = Schema.from_dict({"x": {"type": "date", "bounds": ["2001-01-01", "2002-01-01"]}})
    with pytest.raises(InputError, match=r"'31.12.2001', which is not a date"):
        _read(write("id,day,x\n1,1,31.12.2001\n"), date)


def test_an_entry_of_two_contributors_is_refused(write):
    base = write("id,day,x,sex,y\n1,a,0,f,0\n2,b,0,f,0\n2,a,0,f,0\n")
    _read(base)
    with pytest.raises(InputError, match=r"belongs to two contributors[\s\S]*row 1 \(line 2\) and t.csv, row 3"):
        _read(base, entry_unique=True)
    write("id,day,x,sex,y\n3,c,0,f,0\n", "a.csv")
    write("id,day,x,sex,y\n4,c,0,f,0\n", "b.csv")
    with pytest.raises(InputError, match=r"a.csv, row 1 \(line 2\) and b.csv, row 1"):
        read_sources([_spec(source=f, entry_unique=True) for f in ("a.csv", "b.csv")], SCHEMA, base=base)


def test_the_same_entry_in_two_sources_is_refused(write):
    base = write(CSV)
    write("id,day,x,sex,y\n1,1,10,m,2\n", "u.csv")
    with pytest.raises(InputError, match=r"t.csv, row 2 \(line 3\) and u.csv, row 1"):
        read_sources([_spec(), _spec(source="u.csv")], SCHEMA, base=base)


def test_decimal_ids_are_refused(tmp_path):
    pl.DataFrame({"id": [1.0, 2.0], "day": [1, 1], "x": [0, 0], "sex": ["f", "f"], "y": [0, 1]}).write_parquet(
        tmp_path / "t.parquet"
    )
    with pytest.raises(InputError, match="decimal numbers"):
        _read(tmp_path, source="t.parquet")


def test_learning_from_the_contributor_id_is_refused(write):
    schema = Schema.from_dict({"id": {"type": "integer", "bounds": [0, 10]}})
    with pytest.raises(InputError, match="declared as a feature"):
        _read(write(CSV), schema)


def test_no_features_no_sources(write):
    with pytest.raises(InputError, match="declared as a feature"):
        _read(write(CSV), Schema.from_dict({"y": {"role": "label", "classes": [0, 1, 2]}}))
    with pytest.raises(InputError, match="names no data"):
        read_sources([], SCHEMA)


def test_missing_and_wrong_files(write, monkeypatch, tmp_path):
    base = write(CSV)
    with pytest.raises(InputError, match=r"no file 's.csv'[\s\S]*did you mean 't.csv'"):
        _read(base, source="s.csv")
    with pytest.raises(InputError, match=r"no data set named 'pbcsec'[\s\S]*did you mean 'pbcseq'"):
        _read(base, source="named:pbcsec")
    with pytest.raises(InputError, match="not the expected file"):
        _read(base, sha256="0" * 64)
    (base / "bad.csv.gz").write_bytes(gzip.compress(CSV.encode())[:20])
    with pytest.raises(InputError, match="damaged"):
        _read(base, source="bad.csv.gz")
    (base / "latin.csv").write_bytes(CSV.encode() + "ü,1,0,f,0".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8[\s\S]*line 5"):
        _read(base, source="latin.csv")
    (base / "bad.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match="not a readable Parquet"):
        _read(base, source="bad.parquet")
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.setenv("CONFIDE_DATA", str(base))
    assert find_file("t.csv", base=other) == base / "t.csv"


def test_sql_failures_say_why_but_no_secret(tmp_path, monkeypatch):
    _database(tmp_path)
    with pytest.raises(InputError, match="no such table: visit_list"):
        _read(tmp_path, source="sqlite:///h.sqlite", query="select * from visit_list")
    with pytest.raises(InputError, match=r"no file 'g.sqlite'"):
        _read(tmp_path, source="sqlite:///g.sqlite", query="select 1")
    assert not (tmp_path / "g.sqlite").exists()
    with pytest.raises(InputError, match="stands twice"):
        _read(tmp_path, source="sqlite:///h.sqlite", query="select id, id from visits")
    with pytest.raises(InputError, match="NO_SUCH is not set"):
        _read(tmp_path, source="env:NO_SUCH", query="select 1")
    for address in ("mysql://ada:hunter2@h/db", "nonsense://ada:hunter2@h/db", "no address: hunter2"):
        monkeypatch.setenv("HOSPITAL", address)
        with pytest.raises(InputError) as caught:
            _read(tmp_path, source="env:HOSPITAL", query="select 1")
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_budgets_are_constant_within_a_contributor(write):
    schema = Schema.from_dict({"x": {"type": "real", "bounds": [0, 10]}, "consent": {"role": "attribute"}})
    table = _read(write("id,day,x,consent\n1,1,0,full\n2,1,0,basic\n1,2,0,full\n"), schema)
    assert table.contributor_levels("consent", {"full": 4.0, "basic": 1.0}).tolist() == [4.0, 1.0]
    with pytest.raises(InputError, match=r"no declared level \('basic'\)[\s\S]*entry 2"):
        table.contributor_levels("consent", {"full": 4.0})
    with pytest.raises(InputError, match=r"'consents' is not declared[\s\S]*did you mean 'consent'"):
        table.contributor_levels("consents", {"full": 4.0})
    table = _read(write("id,day,x,consent\n1,1,0,full\n1,2,0,basic\n"), schema)
    with pytest.raises(InputError, match="differs between entries of one contributor"):
        table.contributor_levels("consent", {"full": 4.0, "basic": 1.0})
    table = _read(write("id,day,x,consent\n1,1,0,4\n2,2,0,1.0\n"), schema)
    assert table.contributor_levels("consent").tolist() == [4.0, 1.0]
    assert table.contributor_levels("consent", {"1.0": 1.0, "4.0": 2.0}).tolist() == [2.0, 1.0]
    table = _read(write("id,day,x,consent\n1,1,0,\n"), schema)
    with pytest.raises(InputError, match="is missing"):
        table.contributor_levels("consent", {"full": 4.0})


def test_groups_are_available_by_entry_and_person(write):
    table = _read(write(CSV))
    assert table.values("sex").tolist() == ["f", "m", "f"]
    assert table.contributor_values("sex").tolist() == ["f", "m"]


def test_new_tables_are_read_by_the_same_rules(write):
    base = write("x,sex\n10,m\n0,f\n")
    expected = [[1, 0, 1], [-1, 1, 0]]
    assert read_features("t.csv", SCHEMA, base=base).tolist() == expected
    assert read_features(pl.DataFrame({"x": [10, 0], "sex": ["m", "f"]}), SCHEMA).tolist() == expected
    with pytest.raises(InputError, match="unknown column 'sex'"):
        read_features(pl.DataFrame({"x": [10, 0]}), SCHEMA)
    with pytest.raises(InputError, match="outside"):
        read_features(pl.DataFrame({"x": [11], "sex": ["m"]}), SCHEMA)
    with pytest.raises(InputError, match="no rows"):
        read_features(pl.DataFrame({"x": [], "sex": []}), SCHEMA)


def test_the_fingerprint_is_keyed_and_notices_any_change(write):
    one = _read(write(CSV)).fingerprint(b"k" * 32)
    assert one == _read(write(CSV)).fingerprint(b"k" * 32)
    assert one != _read(write(CSV)).fingerprint(b"l" * 32)
    for old, new in (("01,2,5,f,1", "01,2,6,f,1"), ("01,2,", "02,2,"), ("01,2,", "01,3,"), ("f,1", "f,2")):
        assert one != _read(write(CSV.replace(old, new))).fingerprint(b"k" * 32)


def test_nothing_private_is_printed(write):
    assert repr(_read(write(CSV))) == "Table(private)"


def test_undeclared_columns_are_reported_not_used(write):
    table = _read(write("id,day,x,sex,y,name\n1,1,0,f,0,Ada\n"))
    assert table.report[0].unused == ("name",) and "name" not in table.frame.columns


def test_an_ignored_column_may_be_anything(write):
    schema = Schema(columns={**SCHEMA.columns, "note": ColumnSpec(role="ignore")})
    assert "note" not in _read(write("id,day,x,sex,y,note\n1,1,0,f,0,!!\n"), schema).frame.columns
