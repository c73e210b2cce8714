"""Numbers as labels: surfaces by GraphSAGE and tables, from a study file to predictions in the label's own unit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import confide
from confide import nn
from confide.cli import main
from confide.data import ColumnSpec
from confide.errors import InputError
from confide.ledger import Ledger
from confide.studies import load_study, rehearse_study
from confide.studies.targets import answers_of

_STUDY = """
version = 1
name = "bodies"
[[data]]
source = "bodies.csv"
contributor = "patient"
images = {folder = "meshes", column = "file", mode = "mesh", size = [3, 6, 12], bounds = [-200, 200]}
[columns.fat]
role = "label"
type = "real"
bounds = [0, 50]
[columns.sex]
role = "attribute"
type = "categorical"
categories = ["f", "m"]
[public]
entry_counts = {2 = 40}
max_entries = 2
max_contributors = 40
[privacy]
epsilon = 8.0
delta = 1e-3
strategy = "contributor"
noise_multiplier = 1.0
steps = 20
[model]
name = "graphsage"
options = {width = 8, layers = 2}
[optimizer]
name = "sgd"
lr = 0.2
[evaluation]
holdout = 0.6
subgroups = {sex = "sex"}
"""


def bodies(folder):
    """Squares and octahedra of different sizes; the number to predict is the size."""
    rng = np.random.default_rng(0)
    (folder / "meshes").mkdir()
    octahedron = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = np.array([[i, j, k] for i in (0, 1) for j in (2, 3) for k in (4, 5)])
    lines = ["patient,file,fat,sex"]
    for i in range(80):
        size = rng.uniform(5, 45)
        if i % 2:
            np.savez(folder / "meshes" / f"{i}.npz", vertices=4 * size * octahedron, faces=faces)
        else:
            edges = np.array([[0, 2], [2, 1], [1, 3], [3, 0]])
            np.savez(folder / "meshes" / f"{i}.npz", vertices=4 * size * octahedron[:4], edges=edges)
        lines.append(f"p{i // 2:02d},{i}.npz,{size:.3f},{'fm'[i // 2 % 2]}")
    (folder / "bodies.csv").write_text("\n".join(lines) + "\n")


def written(folder, **change):
    text = _STUDY
    for old, new in change.get("replace", {}).items():
        assert old in text
        text = text.replace(old, new)
    url = f"sqlite:///{folder}/ledger.sqlite"
    Ledger.create(url, cap_epsilon=40.0, cap_delta=1e-2).close()
    (folder / "study.toml").write_text(f'{text}[ledger]\nurl = "{url}"\n')
    return folder / "study.toml"


def test_surfaces_with_edges_of_their_own_train_predict_and_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("confide.studies.measure.EPOCHS", 5)
    bodies(tmp_path)
    path = written(tmp_path)
    assert main(["train", str(path), "--yes", "--device", "cpu"]) == 0
    (release,) = (tmp_path / "releases").iterdir()
    public = {fact.what: fact.value for fact in confide.load(release).certificate.assumed_public}
    assert public["size and scale of the meshes"] == {"mode": "mesh", "size": [3, 6, 12], "bounds": [-200, 200]}
    assert public["column 'fat': bounds"] == [0, 50] and public["loss of one entry, by itself"] == "squared"
    out = tmp_path / "found.csv"
    assert main(["predict", str(release), str(tmp_path / "bodies.csv"), "-o", str(out)]) == 0
    found = pl.read_csv(out)
    assert found.columns == ["patient", "predicted"] and found.height == 80
    truth = pl.read_csv(tmp_path / "bodies.csv")["fat"].to_numpy()
    assert np.corrcoef(found["predicted"].to_numpy(), truth)[0, 1] > 0.5, "in the unit and the direction of the label"
    assert main(["evaluate", str(release), "--members", "0", "--budgets", "2,8"]) == 0
    figures = json.loads((tmp_path / "internal" / release.name / "figures.json").read_text())
    names = ("mean absolute error of fat", "root mean squared error of fat", "R2")
    assert {(m["model"], m["metric"]) for m in figures["metrics"]} == {
        (model, name) for model in ("this release", "non-private") for name in names
    }
    assert [m["model"] for m in figures["budgets"]] == ["epsilon 2", "epsilon 8", "non-private"]
    page = (tmp_path / "internal" / release.name / "report.html").read_text()
    assert "Mean absolute error of fat on held-out people" in page and "Smaller is better" in page
    with pytest.raises(InputError, match="not with masks"):
        confide.load(release).masks(tmp_path / "bodies.csv")


def test_a_table_can_have_a_number_as_its_label(tmp_path):
    """Least squares by the line that `logistic` is without its sigmoid: the answer is near the truth."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 400)
    frame = pl.DataFrame({"id": [f"p{i}" for i in range(400)], "x": x, "age": 30 + 40 * x})
    frame.write_csv(tmp_path / "t.csv")
    change = {
        'source = "bodies.csv"': 'source = "t.csv"',
        'contributor = "patient"': 'contributor = "id"',
        'images = {folder = "meshes", column = "file", mode = "mesh", size = [3, 6, 12], bounds = [-200, 200]}\n': "",
        '[columns.fat]\nrole = "label"': '[columns.x]\ntype = "real"\nbounds = [0, 1]\n[columns.age]\nrole = "label"',
        "bounds = [0, 50]": "bounds = [20, 100]",
        '[columns.sex]\nrole = "attribute"\ntype = "categorical"\ncategories = ["f", "m"]\n': "",
        "{2 = 40}": "{1 = 400}",
        "max_contributors = 40": "max_contributors = 400",
        'name = "graphsage"\noptions = {width = 8, layers = 2}': 'name = "logistic"',
        "lr = 0.2": "lr = 0.5",
        'subgroups = {sex = "sex"}': "",
        "steps = 20": "steps = 60",
        "max_entries = 2": "max_entries = 1",
    }
    path = written(tmp_path, replace=change)
    outcome = confide.studies.run_study(path, device="cpu")
    found = confide.load(outcome.release.path).predict(tmp_path / "t.csv")["predicted"].to_numpy()
    assert np.abs(found - frame["age"].to_numpy()).mean() < 6
    figures = json.loads((outcome.release.internal / "figures.json").read_text())
    (row,) = (m for m in figures["metrics"] if m["metric"] == "mean absolute error of age")
    assert row["low"] <= row["value"] <= row["high"] < 8


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_answers_stay_within_the_declared_bounds(scale):
    """However far a model goes, an answer is a number within the bounds; those within are left alone."""
    column = ColumnSpec(role="label", type="real", bounds=(0.1, 70), scale=scale)
    raw = torch.tensor([-1e30, -1.5, -1.0, -0.25, 1.0, 1.5, 2000.0, 1e30])
    found = answers_of(SimpleNamespace(columns={"fat": column}), torch.nn.Identity(), raw.reshape(-1, 1).numpy())
    assert found.min() >= 0.1 and found.max() <= 70
    np.testing.assert_allclose(found[[0, 1, 2, 4, 5, 6, 7]], [0.1] * 3 + [70] * 4)
    assert found[3] == column.unscaled(-0.25)


def test_surfaces_are_rehearsed_without_the_files(tmp_path):
    path = written(tmp_path, replace={"steps = 20": "steps = 2"})
    assert "40 made-up people" in rehearse_study(path, device="cpu")[0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "graphsage"', 'name = "mlp"', "reads no meshes"),
        ("[optimizer]", "[training]\nloss = 'dice'\n[optimizer]", "no loss of a number; expected squared or absolute"),
        ("[optimizer]", "[training]\nensemble = 3\n[optimizer]", r"not for numbers: \[training\] ensemble"),
        ("[optimizer]", "[training]\naugmentation = 4\n[optimizer]", "entries are surfaces"),
        ("holdout = 0.6", "holdout = 0.6\nmetrics = {epsilon = 1}", r"not for numbers: \[evaluation\] metrics"),
    ],
)
def test_what_does_not_go_with_numbers_or_surfaces_is_refused(tmp_path, old, new, words):
    with pytest.raises(InputError, match=words):
        load_study(written(tmp_path, replace={old: new}))


def test_a_packed_mesh_is_the_mesh_and_padding_has_no_say():
    net = nn.graphsage((9, 4), 2, width=5, vertices=4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 3, generator=generator)
    edges = torch.tensor([[0, 1], [1, 2]])
    packed = torch.zeros(2, 9, 4)
    packed[:, :3, :3], packed[:, :3, 3] = x, 1
    packed[:, 4:6, :2], packed[:, 4:6, 3] = edges.float(), 1
    want = net.inner(x, edges.expand(2, -1, -1))
    assert torch.allclose(net(packed), want, atol=1e-5)
    packed[:, 3, :3], packed[:, 6:, :2] = 77.0, 2.0  # behind flags of 0
    assert torch.allclose(net(packed), want, atol=1e-5)
    other = packed.clone()
    other[1, :3, :3] *= 3
    assert torch.equal(net(other)[0], net(packed)[0]) and not torch.allclose(net(other)[1], net(packed)[1])
    with pytest.raises(InputError, match="packed meshes"):
        nn.graphsage((9, 4), 1, vertices=9)
    with pytest.raises(InputError, match="rows, columns"):
        net(torch.zeros(2, 4, 4))
