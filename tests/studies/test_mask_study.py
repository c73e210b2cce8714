"""Masks from a study file to a release and back to files: plan, train, verify, predict, evaluate; refusals in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import confide
from confide.cli import main
from confide.errors import InputError
from confide.ledger import Ledger
from confide.studies import evaluate_model, load_study, rehearse_study, run_study

_STUDY = """
version = 1
name = "organ"
[[data]]
{data}
[columns.mask]
role = "label"
type = "mask"
{label}
[columns.sex]
role = "attribute"
type = "categorical"
categories = ["f", "m"]
[public]
entry_counts = {{2 = 40}}
max_entries = 2
max_contributors = 40
[privacy]
epsilon = 8.0
delta = 1e-3
strategy = "contributor"
noise_multiplier = 1.0
steps = {steps}
[model]
name = "unet"
options = {{width = 4, levels = 2, groups = 2}}
[optimizer]
name = "sgd"
lr = 0.5
[training]
loss = "dice"
[evaluation]
holdout = 0.6
subgroups = {{sex = "sex"}}
"""
_FILES = """source = "slices.csv"
contributor = "patient"
images = {folder = "png", column = "file", size = [16, 12]}"""
_FILE_LABEL = 'folder = "masks"\nclasses = [0, 255]\nspacing = [0.5, 0.5]'
_ARRAYS = """source = "set.npz#train_"
contributor = "patient"
images = {array = "x", size = [16, 12]}"""


def written(folder: Path, data: str = _FILES, label: str = _FILE_LABEL, steps: int = 12) -> Path:
    Ledger.create(f"sqlite:///{folder}/ledger.sqlite", cap_epsilon=40.0, cap_delta=1e-2).close()
    text = _STUDY.format(data=data, label=label, steps=steps)
    (folder / "study.toml").write_text(text + f'[ledger]\nurl = "sqlite:///{folder}/ledger.sqlite"\n')
    return folder / "study.toml"


def simulated(people: int = 40) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Two slices a person of 12 x 16 pixels, a bright disc on dark ground; the mask is the disc."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:12, :16]
    centre = rng.uniform((4, 5), (8, 11), (2 * people, 2))
    masks = np.stack([(v - a) ** 2 + (u - b) ** 2 < 10 for a, b in centre])
    pictures = np.clip(50 + 150 * masks + rng.normal(0, 10, masks.shape), 0, 255).astype(np.uint8)
    return pictures, masks, [f"p{i // 2:02d}" for i in range(2 * people)], ["fm"[i // 2 % 2] for i in range(2 * people)]


def image_folder(folder: Path) -> None:
    """Pictures of 32 x 24 pixels, twice the declared size, with a mask each, as PNG or .npy."""
    pictures, masks, patients, sexes = simulated()
    lines = ["patient,file,mask,sex"]
    for name in ("png", "masks"):
        (folder / name).mkdir()
    for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        large = [np.repeat(np.repeat(one, 2, 0), 2, 1) for one in (picture, 255 * mask.astype(np.uint8))]
        Image.fromarray(large[0]).save(folder / "png" / f"{i}.png")
        if i % 2:
            np.save(folder / "masks" / f"{i}.npy", large[1])
        else:
            Image.fromarray(large[1]).save(folder / "masks" / f"{i}.png")
        lines.append(f"{patients[i]},{i}.png,{i}.{'npy' if i % 2 else 'png'},{sexes[i]}")
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")


def test_from_a_study_file_to_masks_and_what_they_are_worth(tmp_path, capsys, monkeypatch):
    image_folder(tmp_path)
    study = str(written(tmp_path))
    monkeypatch.setattr("confide.studies.measure.EPOCHS", 2)
    assert main(["plan", study]) == 0
    assert main(["train", study, "--yes", "--device", "cpu"]) == 0
    (release,) = (tmp_path / "releases").iterdir()
    certificate = confide.load(release).certificate
    public = {fact.what: fact.value for fact in certificate.assumed_public}
    assert public["column 'mask': classes of the mask, values of its pixels"] == [0, 255]
    assert public["loss of one entry, by itself"] == "dice"
    assert public["size and scale of the pictures"] == {"mode": "gray", "size": [16, 12]}
    assert main(["verify", str(release)]) == 0

    table = tmp_path / "slices.csv"
    assert main(["predict", str(release), str(table)]) == 2
    assert "--output FOLDER" in capsys.readouterr().err
    out = tmp_path / "marked"
    assert main(["predict", str(release), str(table), "-o", str(out)]) == 0
    assert main(["predict", str(release), str(table), "-o", str(out)]) == 2, "nothing is overwritten"
    assert main(["predict", str(release), str(table), "-o", str(out), "--force"]) == 0
    held = set(release.rglob("*"))
    for inside in (release, release / "marked"):
        assert main(["predict", str(release), str(table), "-o", str(inside), "--force"]) == 2, "nothing joins a release"
    assert set(release.rglob("*")) == held
    rows = pl.read_csv(out / "masks.csv")
    assert rows.columns == ["patient", "file", "mask"] and rows.height == 80
    marked = np.asarray(Image.open(out / "0.png"))
    assert marked.shape == (24, 32) and set(np.unique(marked)) <= {0, 255}, "of the picture's own size, declared values"
    again = confide.load(release).masks(table)
    assert np.array_equal(again[0], marked[::2, ::2])
    with pytest.raises(InputError, match="a mask for each picture"):
        confide.load(release).predict(table)

    before = {file.name: file.read_bytes() for file in release.iterdir()}
    assert main(["evaluate", str(release), "--members", "1", "--budgets", "2"]) == 0
    assert {file.name: file.read_bytes() for file in release.iterdir()} == before, "nothing of it leaves"
    internal = tmp_path / "internal" / release.name
    figures = json.loads((internal / "figures.json").read_text())
    named = {(m["model"], m["metric"]): m for m in figures["metrics"]}
    models, metrics = ("this release", "non-private", "other noise 1"), ("Dice", "HD95 (units of the spacing)")
    assert set(named) == {(model, metric) for model in models for metric in metrics}
    own = named["this release", "Dice"]
    assert 0 <= own["low"] <= own["value"] <= own["high"] <= 1
    assert [m["model"] for m in figures["budgets"]] == ["epsilon 2", "non-private"]
    assert {(g["attribute"], g["group"]) for g in figures["groups"]} == {("sex", "f"), ("sex", "m")}
    page = (internal / "report.html").read_text()
    assert "Dice on held-out people" in page and "HD95" in page and "must not leave" in page
    second = evaluate_model(release).figures
    assert [m.model for m in second.metrics] == ["this release"] * 2 + ["non-private"] * 2, "replaced, not piled up"


def test_figures_are_those_of_the_masks_and_people(tmp_path):
    """Dice of the report against Dice by hand: mean over people of the mean over their slices."""
    from confide.contributors import holdout_mask
    from confide.studies.prepare import holdout_key, prepare

    pictures, masks, patients, sexes = simulated()
    arrays = {"x": pictures, "mask": masks + masks * (np.arange(16) > 8), "patient": patients, "sex": sexes}
    np.savez(tmp_path / "set.npz", **{f"train_{name}": np.array(value) for name, value in arrays.items()})
    path = written(tmp_path, _ARRAYS, "classes = [0, 1, 2]", steps=3)
    outcome = run_study(path, device="cpu")
    study = load_study(path)
    found = confide.load(outcome.release.path).masks(str(tmp_path / "set.npz#train_"))
    assert found.shape == (80, 12, 16) and set(np.unique(found)) <= {0, 1, 2}
    prepared = prepare(study, base=tmp_path, holdout_key=holdout_key(study, None))
    held = holdout_mask(prepared.table.index, 0.6, holdout_key(study, None))[prepared.table.index.of_entry]
    figures = json.loads((outcome.release.internal / "figures.json").read_text())
    assert {m["metric"] for m in figures["metrics"]} == {
        *("Dice of class 1", "HD95 of class 1 (pixels)", "Dice of class 2", "HD95 of class 2 (pixels)")
    }
    for position in (1, 2):
        people: dict[str, list[float]] = {}
        for i in np.flatnonzero(held):
            truth, mine = arrays["mask"][i] == position, found[i] == position
            both = truth.sum() + mine.sum()
            people.setdefault(patients[i], []).append(2 * (truth & mine).sum() / both if both else 1.0)
        want = np.mean([np.mean(own) for own in people.values()])
        (row,) = (m for m in figures["metrics"] if m["metric"] == f"Dice of class {position}")
        assert row["value"] == pytest.approx(want, abs=1e-12)
    out = tmp_path / "found.npz"
    assert main(["predict", str(outcome.release.path), f"{tmp_path}/set.npz#train_", "-o", str(out)]) == 0
    inside = outcome.release.path / "found.npz"
    assert main(["predict", str(outcome.release.path), f"{tmp_path}/set.npz#train_", "-o", str(inside)]) == 2
    assert not inside.exists()
    with np.load(out) as kept:
        assert np.array_equal(kept["mask"], found) and kept["patient"].tolist() == patients
    assert main(["predict", str(outcome.release.path), f"{tmp_path}/set.npz#train_", "-o", str(tmp_path / "x")]) == 2


@pytest.mark.slow
def test_views_averages_snapshots_and_private_baselines_go_with_masks(tmp_path):
    pictures, masks, patients, sexes = simulated()
    arrays = {"x": pictures, "mask": masks + masks * (np.arange(16) > 8), "patient": patients, "sex": sexes}
    np.savez(tmp_path / "set.npz", **{f"train_{name}": np.array(value) for name, value in arrays.items()})
    path = written(tmp_path, _ARRAYS, "classes = [0, 1, 2]", steps=4)
    more = "snapshots = 2\naveraging = 0.9\naugmentation = {views = 2, shift = 2}\nclipping = 'automatic'"
    text = (
        path.read_text()
        .replace('loss = "dice"', more)
        .replace("holdout = 0.6", "holdout = 0.6\nbaselines = ['uniform']")
    )
    path.write_text(text)
    release = run_study(path, device="cpu").release
    figures = json.loads((release.internal / "figures.json").read_text())
    assert {m["model"] for m in figures["metrics"]} == {"this release", "uniform"}, figures["notes"]
    loaded = confide.load(release.path)
    assert len(loaded.model.members) == 2
    x = torch.randn(2, 1, 12, 16)
    with torch.no_grad():
        want = torch.stack([member(x).softmax(1) for member in loaded.model.members]).mean(0)
        assert torch.allclose(loaded.model(x).exp(), want, atol=1e-5), "probabilities of every pixel are averaged"


_VOLUMES = """source = "volumes.npz"
contributor = "patient"
images = {array = "x", size = [8, 8, 4]}"""


@pytest.mark.parametrize(
    ("data", "label", "model"),
    [
        (_FILES, _FILE_LABEL, 'name = "unet"\noptions = {width = 2, levels = 1, groups = 1}'),
        (_VOLUMES, "classes = [0, 3, 9]", 'name = "monet"\noptions = {width = 2, levels = 1, groups = 1}'),
    ],
)
def test_masks_of_pictures_and_volumes_are_rehearsed_without_the_files(tmp_path, data, label, model):
    path = written(tmp_path, data, label, steps=2)
    text = path.read_text()
    old = 'name = "unet"\noptions = {width = 4, levels = 2, groups = 2}'
    assert old in text
    path.write_text(text.replace(old, model).replace('loss = "dice"', 'loss = "cross-entropy"'))
    lines = rehearse_study(path, device="cpu")
    assert "40 made-up people" in lines[0] and not (tmp_path / "releases").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "unet"', 'name = "cnn"', "answers with one value for a picture, and the label is a mask.*monet, unet"),
        ('loss = "dice"', 'loss = "squared"', "no loss of a mask; expected cross-entropy or dice"),
        (
            'loss = "dice"',
            'loss = {rule = "cross-entropy", weights = [1, 2, 3]}',
            "3 weights for 2 classes, no and",
        ),
        ('loss = "dice"', 'loss = {rule = "dice", weights = [1, 2]}', "cross-entropy of a mask"),
        ('folder = "masks"\n', "", "folder is missing.*label images"),
        ("spacing = [0.5, 0.5]", "spacing = [0.5, 0.5, 2]", "spacing has 3 numbers for pictures of 2 dimensions"),
        ('images = {folder = "png", column = "file", size = [16, 12]}', "", "slices.csv has no pictures"),
        ('loss = "dice"', "ensemble = 3", r"not for masks: \[training\] ensemble"),
        ('loss = "dice"', "temperature = {epsilon = 0.5}", r"not for masks: \[training\] temperature"),
        ('loss = "dice"', 'neuraldp = "one-shot"', r"not for masks: \[training\] neuraldp"),
        ('loss = "dice"', 'augmentation = {transform = "mine:noise"}', "change masks like pictures"),
        ("holdout = 0.6", "holdout = 0.6\nmetrics = {epsilon = 0.5}", r"not for masks: \[evaluation\] metrics"),
        ("holdout = 0.6", "holdout = 0.6\nvalidation = 0.5", r"not for masks: \[evaluation\] validation"),
        ("holdout = 0.6", 'holdout = 0.6\nunit = "entry"', 'not for masks: .*unit = "entry"'),
        ("[optimizer]", "[search]\nmean_runs = 2\n[[search.candidates]]\n[optimizer]", r"not for masks: \[search\]"),
        ("classes = [0, 255]", 'classes = [0, "liver"]', "values of its pixels"),
    ],
)
def test_what_does_not_go_with_masks_is_refused_in_the_study_file(tmp_path, old, new, words):
    path = written(tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError) as error:
        load_study(path)
    assert re.search(words, " ".join(str(error.value).split())), str(error.value)


def test_bad_masks_cost_nothing(tmp_path, capsys):
    image_folder(tmp_path)
    study = written(tmp_path)
    Image.fromarray(np.zeros((24, 31), dtype=np.uint8)).save(tmp_path / "masks" / "4.png")
    assert main(["train", str(study), "--yes", "--device", "cpu"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the mask 4.png is 31 x 24 pixels and its picture 4.png 32 x 24" in said and "row 5" in said
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        assert not ledger.reservations()


def test_pictures_outside_their_folder_are_not_written_elsewhere(tmp_path):
    image_folder(tmp_path)
    release = run_study(written(tmp_path, steps=2), device="cpu").release.path
    Image.open(tmp_path / "png" / "0.png").save(tmp_path / "0.png")
    Image.open(tmp_path / "png" / "0.png").save(tmp_path / "png" / "0.tiff")
    for names, words in ((["../0.png"], "outside its folder"), (["0.png", "0.tiff"], "one mask file")):
        pl.DataFrame({"file": names}).write_csv(tmp_path / "new.csv")
        from confide.studies.marking import write_masks

        with pytest.raises(InputError, match=words):
            write_masks(confide.load(release), tmp_path / "new.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
