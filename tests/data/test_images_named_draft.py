"""Image folders, the sets that come along, and the first draft of a study file."""

import tomllib

import numpy as np
import polars as pl
import pytest
from PIL import Image

from confide.data import (
    Schema,
    SourceSpec,
    declaration,
    draft_study,
    load,
    names,
    read_features,
    read_sources,
    without_duplicates,
)
from confide.errors import InputError

LABEL = Schema.from_dict({"y": {"role": "label", "classes": [0, 1]}})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "png").mkdir()
    for name, value in (("a", 0), ("b", 255), ("c", 128)):
        Image.fromarray(np.full((6, 4), value, dtype=np.uint8)).save(tmp_path / "png" / f"{name}.png")
    (tmp_path / "t.csv").write_text("id,file,y\n1,a.png,0\n2,b.png,1\n1,c.png,0\n")
    return tmp_path


def _images(mode="gray", **fields):
    images = {"folder": "png", "column": "file", "mode": mode, "size": [4, 6]}
    return SourceSpec(**{"source": "t.csv", "contributor": "id", "images": images, **fields})


def test_images_are_scaled_and_belong_to_people(folder):
    table = read_sources([_images()], LABEL, base=folder)
    assert table.features.shape == (3, 1, 6, 4) and table.input_shape == (1, 6, 4)
    assert table.features[0].max() == -1 and table.features[1].min() == 1
    assert table.index.of_entry.tolist() == [0, 1, 0] and table.labels.tolist() == [0, 1, 0]
    assert read_sources([_images("rgb")], LABEL, base=folder).features.shape == (3, 3, 6, 4)
    again = read_features("t.csv", LABEL, base=folder, images=_images().images)
    assert np.array_equal(again, table.features)


def test_sixteen_bit_pictures_share_one_scale(folder):
    Image.fromarray(np.full((6, 4), 65535, dtype=np.uint16)).save(folder / "png" / "a.png")
    Image.fromarray(np.full((6, 4), 0, dtype=np.uint16)).save(folder / "png" / "b.png")
    features = read_sources([_images()], LABEL, base=folder).features
    assert features[0].min() == 1 and features[1].max() == -1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "id,file,y\n1,a.png,0\n2,a.png,1\n",
            r"image file belongs to two contributors[\s\S]*line 2\) and t.csv, row 2",
        ),
        ("id,file,y\n1,a.png,0\n1,a.png,1\n", "stands twice for one contributor"),
        ("id,file,y\n1,a.png,0\n1,z.png,1\n", r"no image file 'z.png'[\s\S]*row 2"),
        ("id,file,y\n1,a.png,0\n1,,1\n", r"file name is missing[\s\S]*row 2"),
        ("id,files,y\n1,a.png,0\n", r"unknown column 'file'[\s\S]*did you mean 'files'"),
    ],
)
def test_bad_image_tables_are_refused(folder, table, message):
    (folder / "t.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_sources([_images()], LABEL, base=folder)


def test_bad_images_are_refused(folder):
    (folder / "png" / "b.png").write_text("not a picture")
    with pytest.raises(InputError, match=r"b.png is not a readable picture"):
        read_sources([_images()], LABEL, base=folder)
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(folder / "png" / "b.tiff")
    (folder / "t.csv").write_text("id,file,y\n1,b.tiff,0\n")
    with pytest.raises(InputError, match="decimal numbers"):
        read_sources([_images()], LABEL, base=folder)
    with pytest.raises(InputError, match="no image folder"):
        read_sources([_images(images={"folder": "no", "column": "file", "size": [4, 6]})], LABEL, base=folder)


def test_images_and_feature_columns_do_not_mix(folder):
    schema = Schema.from_dict({"x": {"type": "real", "bounds": [0, 1]}})
    with pytest.raises(InputError, match="no feature columns"):
        read_sources([_images()], schema, base=folder)
    with pytest.raises(InputError, match="differ in kind"):
        read_sources([_images(), SourceSpec(source="t.csv", contributor="id")], LABEL, base=folder)


SHAPES = {
    "pbcseq": (1945, 19, "id", 312),
    "nafld1": (17549, 9, "id", 17549),
    "nafld2": (400123, 4, "id", 15666),
    "nafld3": (34340, 3, "id", 12454),
    "icu_patient": (2000, 12, "CombinedID", 2000),
    "icu_daily": (18797, 4, "CombinedID", 2000),
    "icu": (18797, 15, "CombinedID", 2000),
    "nih14_entry_counts": (103, 2, "entries", 103),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_named_sets_are_what_the_documentation_says(name):
    rows, columns, who, people = SHAPES[name]
    frame = load(name)
    assert frame.shape == (rows, columns) and frame[who].n_unique() == people


def test_the_nih_histogram_adds_up():
    counts = load("nih14_entry_counts")
    assert counts["contributors"].sum() == 30805
    assert (counts["entries"] * counts["contributors"]).sum() == 112120 and counts["entries"].max() == 184


def test_repeated_laboratory_names_are_dropped():
    laboratory = load("nafld2")
    wide = laboratory.unique(["id", "days", "test"]).pivot(on="test", index=["id", "days"], values="value")
    assert wide.filter(pl.col("chol") != pl.col("hdl")).height == 0
    assert wide.filter(pl.col("dbp") != pl.col("sbp")).height == 0
    assert set(without_duplicates(laboratory)["test"].unique()) == {"hdl", "sbp", "fib4", "smoke"}


def test_unknown_names_are_refused():
    assert {"icu", "nafld_yearly", "pbcseq"} <= set(names())
    with pytest.raises(InputError, match="did you mean 'pbcseq'"):
        load("pbc")


@pytest.mark.parametrize(
    ("name", "who", "entry", "positives"),
    [("pbcseq", "id", "day", 725), ("icu", "CombinedID", "Study_Day", 3825), ("nafld_yearly", "id", "year", None)],
)
def test_declarations_fit_their_sets(name, who, entry, positives):
    schema = Schema.from_dict(tomllib.loads(declaration(name))["columns"])
    table = read_sources([SourceSpec(source=f"named:{name}", contributor=who, entry=entry)], schema)
    assert np.isfinite(table.features).all() and np.abs(table.features).max() <= 1
    assert positives is None or table.labels.sum() == positives
    clipped = sum(sum(report.clipped.values()) for report in table.report)
    assert clipped < 0.02 * table.features.shape[0]


def test_a_draft_is_a_study_that_reads_its_table():
    text, looked_at = draft_study("named:pbcseq", "id", "status", entry="day")
    study = tomllib.loads(text)
    schema = Schema.from_dict(study["columns"])
    table = read_sources([SourceSpec(**source) for source in study["data"]], schema)
    assert len(table) == 1945 and set(table.labels) == {0, 1, 2}
    for column, declared in study["columns"].items():
        if declared.get("role") != "ignore":
            assert any(repr(column) in line for line in looked_at)
    assert text.count("CONFIRM") >= len(study["columns"])
    assert study["public"]["max_entries"] == 16 and study["public"]["max_contributors"] == 1000


def test_a_draft_leaves_names_and_free_text_out(tmp_path):
    rows = "".join(f"{i % 7:03d},Name {i},2001-05-{1 + i % 28:02d},{i / 10},a b,{i % 2},\n" for i in range(60))
    (tmp_path / "visits.csv").write_text("who is it,name,seen,x,odd col,died,void\n" + rows)
    text, looked_at = draft_study("visits.csv", "who is it", "died", base=tmp_path)
    columns = tomllib.loads(text)["columns"]
    assert columns["name"] == {"role": "ignore"} and columns["void"] == {"role": "ignore"}
    assert columns["seen"]["type"] == "date" and columns["odd col"]["categories"] == ["a b"]
    assert columns["x"] == {"type": "real", "bounds": [0, 6]}
    assert tomllib.loads(text)["name"] == "visits"
    assert "Name 3" not in text and len(looked_at) >= 7
    with pytest.raises(InputError, match="did you mean 'died'"):
        draft_study("visits.csv", "who is it", "dies", base=tmp_path)
    with pytest.raises(InputError, match="60 different values"):
        draft_study("visits.csv", "who is it", "name", base=tmp_path)
