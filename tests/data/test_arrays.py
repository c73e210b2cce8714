"""Pictures and volumes from .npz files: shapes, a scale that is the same for every picture, refusals in words."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from confide.data import Schema, SourceSpec, read_features, read_sources
from confide.data.spec import ImageSpec
from confide.errors import InputError

SCHEMA = Schema.from_dict({"labels": {"role": "label", "classes": [0, 1], "positive": [1]}})
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
LABELS = np.array([[0], [1], [1], [0], [1]], dtype=np.uint8)


def saved(folder, **arrays):
    np.savez(folder / "set.npz", **{"train_images": PICTURES, "train_labels": LABELS, **arrays})
    return folder


def spec(source="set.npz#train_", contributor="row", **images):
    return SourceSpec(
        source=source, contributor=contributor, images={"array": "images", "size": [4, 6]} | images or None
    )


def test_pictures_labels_and_owners(tmp_path):
    base = saved(tmp_path, train_person=np.array(["a", "a", "b", "b", "c"]), test_images=PICTURES[:2])
    table = read_sources([spec()], SCHEMA, base=base)
    assert table.features.shape == (5, 1, 6, 4) and table.features.dtype == np.float32
    np.testing.assert_allclose(table.features[:, 0], PICTURES / 127.5 - 1, atol=1e-6)
    assert table.labels.tolist() == LABELS[:, 0].tolist() and table.index.n_contributors == 5
    assert read_sources([spec(contributor="person")], SCHEMA, base=base).index.n_contributors == 3
    new = read_features(SourceSpec(source="set.npz#train_", contributor="row"), SCHEMA, base=base, images=spec().images)
    assert np.array_equal(new, table.features)


@pytest.mark.parametrize(
    ("array", "declared", "shape"),
    [
        (np.zeros((5, 6, 4, 3), np.uint8), {"mode": "rgb"}, (3, 6, 4)),
        (np.zeros((5, 6, 4, 1), np.uint16), {}, (1, 6, 4)),
        (np.zeros((5, 2, 6, 4), bool), {"size": [4, 6, 2]}, (1, 2, 6, 4)),
        (np.full((5, 6, 4), -3.0), {"bounds": [-3, 5]}, (1, 6, 4)),
        (np.full((5, 7, 3), -900.0), {"mode": "points", "size": [3, 7], "bounds": [-900, 900]}, (7, 3)),
    ],
)
def test_colours_volumes_and_declared_bounds(tmp_path, array, declared, shape):
    base = saved(tmp_path, train_images=array)
    table = read_sources([spec(**declared)], SCHEMA, base=base)
    assert table.input_shape == shape == spec(**declared).images.shape
    assert np.array_equal(table.features, np.full((5, *shape), -1, np.float32)), "black, or the lower bound"


@pytest.mark.parametrize(
    ("arrays", "source", "declared", "words"),
    [
        ({}, "set.npz#tain_", {}, "begins with 'tain_'"),
        ({}, "set.npz#train_", {"array": "image"}, "did you mean 'images'"),
        ({}, "set.npz#train_", {"size": [28, 28]}, "not resized"),
        ({"train_images": np.zeros((5, 6, 4))}, "set.npz#train_", {}, "scale is not fixed"),
        ({"train_images": np.full((5, 6, 4), np.nan)}, "set.npz#train_", {"bounds": [0, 1]}, "outside 0 to 1"),
        ({"train_images": PICTURES[:3]}, "set.npz#train_", {}, "3 pictures and 5 rows"),
        ({"train_age": np.zeros(3)}, "set.npz#train_", {}, "different lengths"),
        ({"train_labels": np.array([{}] * 5, dtype=object)}, "set.npz#train_", {}, "pickled objects are never read"),
    ],
)
def test_refusals_say_what_to_do(tmp_path, arrays, source, declared, words):
    with pytest.raises(InputError, match=words):
        read_sources([spec(source, **declared)], SCHEMA, base=saved(tmp_path, **arrays))


def test_declarations_that_do_not_fit_together():
    for wrong in ({"size": [4, 4]}, {"array": "a", "folder": "f", "column": "c", "size": [4, 4]}):
        with pytest.raises(ValidationError, match="folder and column"):
            ImageSpec.model_validate(wrong)
    with pytest.raises(ValidationError, match="one channel"):
        ImageSpec.model_validate({"array": "a", "mode": "rgb", "size": [4, 4, 4]})
    for more in ({"array": "a", "size": [3, 4, 5]}, {"folder": "f", "column": "c", "size": [3, 4]}):
        with pytest.raises(ValidationError, match="coordinates, points"):
            ImageSpec.model_validate({"mode": "points", **more})
    with pytest.raises(ValidationError, match=r"belongs to a \.npz source"):
        spec("table.csv")
    with pytest.raises(InputError, match="there is no file"):
        read_sources([spec("none.npz")], SCHEMA)
