"""A study of pictures in a .npz file, from file to release: features once, a claim per image, prediction of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import confide
from confide.errors import InputError
from confide.ledger import Ledger
from confide.studies import load_study, rehearse_study, run_study
from confide.studies.rehearse import random_table

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pneumonia.toml"


def test_the_example_says_per_image():
    study = load_study(EXAMPLE)
    assert study.unit == "entry" and study.model.name == "scattering"
    assert study.data[0].images is not None and study.data[0].images.shape == (1, 28, 28)


def test_pictures_train_and_predict(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    pictures = rng.integers(0, 120, (60, 28, 28)) + 100 * labels[:, None, None] * (np.arange(28) > 13)
    np.savez(
        tmp_path / "pneumonia_xray_28.npz",
        train_images=pictures.astype(np.uint8),
        train_labels=labels[:, None].astype(np.uint8),
        test_images=pictures[:7].astype(np.uint8),
        test_labels=labels[:7, None].astype(np.uint8),
    )
    text = EXAMPLE.read_text()
    for old, new in {
        "steps = 200": "steps = 4",
        "4708": "60",
        '["non-private"]': "[]",
        '"scattering" ': '"hog" ',
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "study.toml").write_text(text)
    Ledger.create(f"sqlite:///{tmp_path}/pneumonia-ledger.sqlite", cap_epsilon=30.0, cap_delta=1e-3).close()
    outcome = run_study(tmp_path / "study.toml", device="cpu")
    certificate = outcome.release.certificate
    assert certificate.unit == "entry" and "per entry, not per person" in certificate.stamps
    assert any("per image, not per patient" in limit for limit in certificate.not_covered)
    loaded = confide.load(outcome.release.path)
    assert set(loaded.model.state_dict()) == {"head.weight", "head.bias"}
    found = loaded.predict(tmp_path / "pneumonia_xray_28.npz#test_")
    assert isinstance(found, pl.DataFrame) and found.height == 7


_PICTURES = """
version = 1
name = "pictures"
[[data]]
{data}
[columns.finding]
role = "label"
classes = ["yes", "no"]
positive = ["yes"]
[columns.sex]
role = "attribute"
type = "categorical"
categories = ["f", "m"]
[public]
max_entries = 3
max_contributors = 40
[privacy]
epsilon = 4.0
delta = 1e-5
strategy = "individual"
noise_multiplier = 1.0
steps = 2
[model]
{model}
[optimizer]
name = "sgd"
lr = 0.5
[evaluation]
subgroups = {{sex = "sex"}}
"""
_FOLDER = """source = "visits.csv"
contributor = "patient"
entry = "visit"
images = {folder = "png", column = "file", mode = "rgb", size = [20, 12]}"""
_VOLUMES = """source = "volumes.npz#train_"
contributor = "patient"
images = {array = "scans", size = [10, 9, 8], bounds = [-1000, 1000]}"""


_MESHES = """source = "bodies.npz"
contributor = "patient"
images = {array = "vertices", mode = "points", size = [3, 4], bounds = [-1000, 1000]}"""
_SAGE = 'name = "graphsage"\n[model.options]\nwidth = 8\nlayers = 2\nedges = [[0, 1], [1, 2], [2, 3], [0, 3]]'


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (_MESHES, _SAGE),
        (_FOLDER, 'name = "cnn"\n[model.options]\nwidths = [4, 8]'),
        (_VOLUMES, 'name = "slices"\n[model.options]\nfeatures = 16\nbackbone_options = {widths = [4, 8]}'),
    ],
)
def test_pictures_and_volumes_are_rehearsed_without_the_files(tmp_path: Path, data: str, model: str) -> None:
    (tmp_path / "study.toml").write_text(_PICTURES.format(data=data, model=model))
    lines = rehearse_study(tmp_path / "study.toml", device="cpu")
    assert "random pictures of 40 made-up people" in lines[0] and "Nothing was read" in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.toml"]


def test_surfaces_that_follow_one_template_train_and_predict(tmp_path: Path) -> None:
    text = _PICTURES.format(data=_MESHES, model=_SAGE).replace('classes = ["yes", "no"]', "classes = [0, 1]")
    text = text.replace('positive = ["yes"]', "positive = [1]").replace("[columns.sex]", "[columns.left]")
    text = text.replace('categories = ["f", "m"]', "categories = [0, 1]").replace('{sex = "sex"}', '{left = "left"}')
    (tmp_path / "study.toml").write_text(text)
    rng = np.random.default_rng(0)
    arrays = {"finding": np.arange(60) % 2, "left": np.arange(60) % 2, "patient": np.arange(60) // 2}
    np.savez(tmp_path / "bodies.npz", vertices=rng.uniform(-900, 900, (60, 4, 3)), **arrays)
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    Ledger.create(url, cap_epsilon=30.0, cap_delta=1e-3).close()
    release = run_study(tmp_path / "study.toml", device="cpu", ledger_url=url).release
    found = confide.load(release.path).predict(tmp_path / "bodies.npz")
    assert found.height == 60 and found["probability"].is_between(0, 1).all()


@pytest.mark.parametrize("name", ["unet", "monet"])
def test_a_model_of_masks_without_a_mask_is_refused_with_the_way_that_works(tmp_path: Path, name: str) -> None:
    (tmp_path / "study.toml").write_text(_PICTURES.format(data=_FOLDER, model=f'name = "{name}"'))
    with pytest.raises(InputError, match=r'a mask for each picture.*type = "mask"'):
        load_study(tmp_path / "study.toml")


def test_a_rehearsal_of_pictures_finds_a_net_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(_PICTURES.format(data=_VOLUMES, model='name = "resnet9"'))
    with pytest.raises(InputError, match="resnet9"):
        rehearse_study(tmp_path / "study.toml", device="cpu")


def test_the_example_without_ids_is_rehearsed(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("steps = 200", "steps = 2").replace('"scattering" ', '"hog" ')
    (tmp_path / "study.toml").write_text(text)
    assert "60 made-up people" in rehearse_study(tmp_path / "study.toml", device="cpu")[0]


def test_made_up_rows_of_the_example_have_the_declared_categories() -> None:
    """Of 0, 0.5 and 1 some are whole numbers for TOML and one is not: a table has one type a column."""
    study = load_study(EXAMPLE.with_name("pbcseq.toml"))
    table = random_table(study, {4: 30.0}, people=30, rng=np.random.default_rng(0))
    assert set(table["edema"]) == {"0", "0.5", "1"} and set(table["stage"]) == {1, 2, 3, 4}
