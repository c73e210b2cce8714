"""Surfaces with edges of their own: one array for each, padded, scaled by declared bounds; refusals in words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydantic import ValidationError

from confide.data import ImageSpec, Schema, SourceSpec, read_features, read_sources
from confide.errors import InputError

SCHEMA = Schema.from_dict({"fat": {"role": "label", "type": "real", "bounds": [0, 50]}})
SPEC = {"folder": "meshes", "column": "file", "mode": "mesh", "size": [3, 5, 7], "bounds": [-100, 100]}
FACES = np.array([[0, 1, 2], [1, 2, 3]])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "meshes").mkdir()
    corners = np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, -100]])
    np.savez(tmp_path / "meshes" / "a.npz", vertices=corners, faces=FACES)
    np.savez(tmp_path / "meshes" / "b.npz", vertices=corners[:2] / 2.0, edges=np.array([[1, 0], [0, 1]]))
    (tmp_path / "t.csv").write_text("id,file,fat\nada,a.npz,25\nben,b.npz,50\n")
    return tmp_path


def source(**change):
    return SourceSpec(source="t.csv", contributor="id", images={**SPEC, **change})


def test_meshes_are_packed_padded_and_scaled(folder):
    table = read_sources([source()], SCHEMA, base=folder)
    assert table.input_shape == source().images.shape == (12, 4) and table.labels.tolist() == [0.0, 1.0]
    large, small = table.features
    assert large[:, 3].tolist() == [1] * 4 + [0] + [1] * 5 + [0] * 2
    assert large[:4, :3].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, -1]]
    assert large[5:10, :2].tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert small[1, :3].tolist() == [0.5, 0, 0] and small[5, :2].tolist() == [0, 1] and small[:, 3].sum() == 3
    new = read_features("t.csv", SCHEMA, base=folder, images=source().images)
    assert np.array_equal(new, table.features)


@pytest.mark.parametrize(
    ("arrays", "change", "words"),
    [
        ({}, {"size": [3, 3, 7]}, "a.npz has 4 vertices.*at most 3"),
        ({}, {"size": [3, 5, 4]}, "a.npz has 5 edges.*at most 4"),
        ({}, {"bounds": [-50, 50]}, "a coordinate outside -50 to 50"),
        ({"vertices": np.full((4, 3), np.nan)}, {}, "coordinate outside"),
        ({"faces": FACES + 1}, {}, "a vertex that is not there.*from 0 to 3"),
        ({"faces": FACES / 1.0}, {}, "whole numbers"),
        ({"edges": FACES[:, :2]}, {}, "either faces"),
        ({"vertices": np.zeros((4, 2))}, {}, r"vertices \(4, 2\).*\(vertices, 3\)"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(folder, arrays, change, words):
    with np.load(folder / "meshes" / "a.npz") as held:
        kept = {**held, **arrays}
    np.savez(folder / "meshes" / "a.npz", **kept)
    with pytest.raises(InputError) as error:
        read_sources([source(**change)], SCHEMA, base=folder)
    assert re.search(words, " ".join(str(error.value).split())), str(error.value)


def test_a_mesh_of_two_people_is_called_a_mesh(folder):
    (folder / "t.csv").write_text("id,file,fat\nada,a.npz,25\nben,a.npz,50\n")
    with pytest.raises(InputError, match="one mesh file belongs to two contributors"):
        read_sources([source()], SCHEMA, base=folder)


def test_files_that_are_no_meshes_or_not_there_are_refused(folder):
    (folder / "meshes" / "a.npz").write_text("no mesh")
    with pytest.raises(InputError, match="not a readable"):
        read_sources([source()], SCHEMA, base=folder)
    np.save(folder / "meshes" / "x.npy", FACES)
    (folder / "meshes" / "x.npy").rename(folder / "meshes" / "a.npz")
    with pytest.raises(InputError, match="not a readable"):
        read_sources([source()], SCHEMA, base=folder)
    (folder / "meshes" / "a.npz").unlink()
    with pytest.raises(InputError, match="no mesh file"):
        read_sources([source()], SCHEMA, base=folder)


@pytest.mark.parametrize("change", [{"bounds": None}, {"size": [3, 5]}, {"bounds": [1, 1]}])
def test_a_mesh_is_declared_with_its_largest_size_and_bounds(change):
    with pytest.raises(ValidationError, match="bounds"):
        ImageSpec.model_validate({**SPEC, **change})
