"""Masks beside pictures and in .npz files: classes as declared, sizes that fit, refusals in words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from confide.data import ColumnSpec, Schema, SourceSpec, read_sources
from confide.errors import InputError

RNG = np.random.default_rng(0)
FILES = SourceSpec(source="t.csv", contributor="id", images={"folder": "png", "column": "file", "size": [8, 6]})
ARRAYS = SourceSpec(source="set.npz#train_", contributor="id", images={"array": "x", "size": [4, 6]})
PICTURES = RNG.integers(0, 256, (5, 6, 4), dtype=np.uint8)
MASKS = RNG.integers(0, 3, (5, 6, 4)) * 10
IDS = np.array(["a", "a", "b", "b", "c"])


def schema(classes=(0, 1), **more):
    return Schema.from_dict(
        {"mask": {"role": "label", "type": "mask", "classes": list(classes), "folder": "masks", **more}}
    )


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 8 x 6 pixels with a mask each: a PNG, one with a palette, and a .npy of truth values."""
    for name in ("png", "masks"):
        (tmp_path / name).mkdir()
    for name in "abc":
        Image.fromarray(RNG.integers(0, 256, (6, 8), dtype=np.uint8)).save(tmp_path / "png" / f"{name}.png")
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[2:4, 1:7] = 1
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    palette = Image.fromarray(mask.T.copy().T, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "masks" / "b.png")
    np.save(tmp_path / "masks" / "c.npy", mask == 1)
    (tmp_path / "t.csv").write_text("id,file,mask\n1,a.png,a.png\n2,b.png,b.png\n1,c.png,c.npy\n")
    return tmp_path


def test_label_images_palettes_and_npy_files_are_read_alike(folder):
    table = read_sources([FILES], schema(), base=folder)
    assert table.labels.shape == (3, 6, 8) and table.labels.dtype == np.uint8
    want = np.zeros((6, 8))
    want[2:4, 1:7] = 1
    assert all(np.array_equal(mask, want) for mask in table.labels)
    assert schema().target == "mask" and schema().n_outputs == 1 and schema((0, 1, 7)).n_outputs == 3
    assert schema((0, 1, 7), positive=[1, 7]).n_outputs == 1


def test_a_mask_is_resized_with_its_picture_and_no_class_is_mixed(folder):
    small = FILES.model_copy(update={"images": FILES.images.model_copy(update={"size": (4, 3)})})
    mask = np.repeat(np.repeat(np.array([[0, 200], [90, 0], [0, 0]], dtype=np.uint8), 2, 0), 4, 1)
    for name in ("a.png", "b.png"):
        Image.fromarray(mask).save(folder / "masks" / name)
    np.save(folder / "masks" / "c.npy", mask)
    labels = read_sources([small], schema((0, 90, 200)), base=folder).labels
    assert labels[0].tolist() == [[0, 0, 2, 2], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert np.array_equal(labels[0], labels[2])


def test_a_turned_photograph_has_the_size_that_is_shown(folder):
    picture = Image.fromarray(RNG.integers(0, 256, (8, 6), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "png" / "a.png", exif=exif)
    assert read_sources([FILES], schema(), base=folder).labels.shape == (3, 6, 8)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", r"no mask file 'b.png'.*row 2"),
        ("unnamed", r"mask file name is missing.*row 2"),
        ("size", r"b.png is 8 x 7 pixels and its picture b.png 8 x 6.*row 2"),
        ("class", r"b.png holds the value 4 at row 3, column 2.*and 11 more pixels.*one of 0, 1.*\[columns.mask\]"),
        ("colour", "mode RGB .colour.*one channel of class numbers"),
        ("F", r"picture of mode F \(decimal numbers\).*one channel of class numbers"),
        ("LA", r"picture of mode LA \(grey with transparency\)"),
        ("pages", "b.tif has 2 pages, and a mask is one"),
        ("jpeg", "JPEG, whose pixels are not exact"),
        ("text", "not a readable picture"),
        ("decimal", "values of type float64.*whole numbers"),
        ("flat", "array of 1 dimensions"),
        ("pickle", "pickled objects are never read"),
        ("archive", "not a readable .npy file"),
        ("shared", "one mask file belongs to two contributors.*removing one of them leaves the data in"),
        ("folder", "no mask folder 'masks'"),
        ("column", r"unknown column 'mask'.*did you mean 'mask2'"),
    ],
)
def test_refusals_say_what_where_and_what_to_do(folder, how, words):
    mask = np.zeros((6, 8), dtype=np.uint8)
    second = folder / "masks" / "b.png"
    lines = (folder / "t.csv").read_text()
    if how == "missing":
        second.unlink()
    elif how == "unnamed":
        lines = lines.replace("b.png,b.png", "b.png,")
    elif how == "size":
        Image.fromarray(np.zeros((7, 8), dtype=np.uint8)).save(second)
    elif how == "class":
        mask[2:4, 1:7] = 4
        Image.fromarray(mask).save(second)
    elif how == "colour":
        Image.fromarray(np.stack([mask] * 3, 2)).save(second)
    elif how in ("F", "LA"):
        second = second.with_suffix(".tif" if how == "F" else ".png")
        Image.fromarray(mask).convert(how).save(second)
        lines = lines.replace("b.png,b.png", f"b.png,{second.name}")
    elif how == "pages":
        page = Image.fromarray(mask)
        page.save(folder / "masks" / "b.tif", save_all=True, append_images=[page])
        lines = lines.replace("b.png,b.png", "b.png,b.tif")
    elif how == "jpeg":
        Image.fromarray(mask).save(second, format="JPEG")
    elif how == "text":
        second.write_text("no picture")
    elif how in ("decimal", "flat", "pickle"):
        values = {"decimal": mask / 1.0, "flat": mask[0], "pickle": np.array([{}], dtype=object)}[how]
        np.save(folder / "masks" / "b.npy", values)
        lines = lines.replace("b.png,b.png", "b.png,b.npy")
    elif how == "archive":
        np.savez(folder / "masks" / "b.npz", mask)
        (folder / "masks" / "b.npz").rename(folder / "masks" / "b.npy")
        lines = lines.replace("b.png,b.png", "b.png,b.npy")
    elif how == "shared":
        lines = lines.replace("b.png,b.png", "b.png,a.png")
    elif how == "folder":
        (folder / "masks").rename(folder / "elsewhere")
    elif how == "column":
        lines = lines.replace("file,mask", "file,mask2")
    (folder / "t.csv").write_text(lines)
    with pytest.raises(InputError) as error:
        read_sources([FILES], schema(), base=folder)
    assert re.search(words, " ".join(str(error.value).split())), str(error.value)


def test_masks_in_an_array_pictures_and_volumes(tmp_path):
    np.savez(tmp_path / "set.npz", train_x=PICTURES, train_mask=MASKS[:, None], train_id=IDS, test_x=PICTURES[:1])
    table = read_sources([ARRAYS], schema((0, 10, 20)), base=tmp_path)
    assert np.array_equal(table.labels, MASKS // 10) and table.index.n_contributors == 3
    two = read_sources([ARRAYS], schema((0, 10, 20), positive=[20]), base=tmp_path)
    assert np.array_equal(two.labels, MASKS == 20)
    key = b"k" * 32
    assert table.fingerprint(key) != two.fingerprint(key), "other masks are other data"
    volumes = SourceSpec(source="v.npz", contributor="row", images={"array": "x", "size": [4, 6, 5]})
    np.savez(tmp_path / "v.npz", x=PICTURES[None], mask=MASKS[None] > 0)  # nothing but pictures and masks
    assert read_sources([volumes], schema(), base=tmp_path).labels.shape == (1, 5, 6, 4)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train_mask": MASKS[:, :5]}, "masks of 5 x 4.*6 x 4, the declared size"),
        ({"train_mask": MASKS[:4]}, "5 pictures and 4 masks"),
        ({"train_mask": MASKS + 1}, r"mask 1 holds the value \d+1? at row 1, column 1"),
        ({"train_mask": MASKS - 10}, "the value -10"),
        ({"train_masks": MASKS}, "no array 'mask'.*did you mean 'masks'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "set.npz", train_x=PICTURES, train_id=IDS, **arrays)
    with pytest.raises(InputError) as error:
        read_sources([ARRAYS], schema((0, 10, 20)), base=tmp_path)
    assert re.search(words, " ".join(str(error.value).split())), str(error.value)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"type": "mask", "role": "feature", "classes": [0, 1]}, "what is predicted"),
        ({"type": "mask", "role": "label"}, "needs classes"),
        ({"type": "mask", "role": "label", "classes": ["no", "yes"]}, "values of its pixels"),
        ({"type": "mask", "role": "label", "classes": [0, 70000]}, "from 0 to 65535"),
        ({"type": "mask", "role": "label", "classes": list(range(256))}, "at most 255"),
        ({"type": "mask", "role": "label", "classes": [0, 1], "spacing": [0.0, 1.0]}, "above 0"),
        ({"type": "mask", "role": "label", "classes": [0, 1], "bounds": [0, 1]}, "neither bounds"),
        ({"role": "label", "classes": [0, 1], "folder": "masks"}, 'type = "mask"'),
        ({"role": "label", "type": "real"}, "needs bounds"),
        ({"role": "label", "type": "real", "bounds": [0, 1], "positive": [1]}, "this one is a number"),
    ],
)
def test_declarations_that_do_not_fit(declared, words):
    with pytest.raises(ValidationError, match=words):
        ColumnSpec.model_validate(declared)


def test_a_number_is_spread_over_its_declared_bounds_and_comes_back(tmp_path):
    (tmp_path / "t.csv").write_text("id,x,age\n1,0.5,20\n2,0.1,60\n3,0.2,100\n")
    columns = {"x": {"type": "real", "bounds": [0, 1]}, "age": {"role": "label", "type": "real", "bounds": [20, 100]}}
    declared, source = Schema.from_dict(columns), SourceSpec(source="t.csv", contributor="id")
    table = read_sources([source], declared, base=tmp_path)
    assert declared.target == "number" and declared.n_outputs == 1
    assert table.labels.tolist() == [-1.0, 0.0, 1.0] and table.labels.dtype == np.float32
    for scale in ("linear", "log"):
        age = ColumnSpec(role="label", type="real", bounds=(20, 100), scale=scale)
        np.testing.assert_allclose(age.unscaled(age.scaled(np.array([20.0, 33.0, 100.0]))), [20, 33, 100])
    for cell, words in (("150", "outside its declared bounds"), ("", "the label 'age' is missing")):
        (tmp_path / "t.csv").write_text(f"id,x,age\n1,0.5,20\n2,0.1,{cell}\n")
        with pytest.raises(InputError, match=words):
            read_sources([source], declared, base=tmp_path)
