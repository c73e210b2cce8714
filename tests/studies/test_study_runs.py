"""A study file becomes a certified release, and nothing about one person shows in what is public."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from clinic import Clinic, visits

import confide
from confide.errors import BudgetError, InputError, VerificationError
from confide.ledger import Ledger
from confide.release import Release
from confide.studies import load_study, rehearse_study, run_study
from confide.studies.watch import Price, Quiet


def public_parts(release: Release) -> dict[str, object]:
    """The certificate without what differs between any two runs: time, hashes, reservation."""
    facts = json.loads(release.certificate.to_json())
    for key in ("created", "artefacts", "ledger", "cite"):
        facts.pop(key)
    return facts


def test_study_becomes_release_that_verifies(clinic: Clinic) -> None:
    outcome = clinic.run()
    folder = outcome.release.path
    assert sorted(p.name for p in folder.iterdir()) == [
        "certificate.json",
        "model.safetensors",
        "report.html",
        "study.toml",
    ]
    assert re.fullmatch(r"clinic-\d{8}T\d{6}Z-[0-9a-f]{6}", folder.name)
    assert (clinic.home / "internal" / folder.name / "report.html").exists()
    assert all(c.epsilon <= 3.0 for c in outcome.release.certificate.classes)
    with Ledger.open(clinic.url) as ledger:
        (record,) = ledger.reservations()
        assert record.state == "committed"
        assert record.release_hash == outcome.release.digest
        assert confide.verify(folder, ledger=ledger).ok
    assert not list((clinic.home / "internal").glob("*.run")), "keys and checkpoints are deleted at commit"
    assert "epsilon" in outcome.sentence


def test_internal_folder_is_private_and_stamped(clinic: Clinic) -> None:
    outcome = clinic.run()
    report = outcome.release.internal / "report.html"
    assert "must not leave" in report.read_text()
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_certificate_is_the_same_without_one_contributor(clinic: Clinic) -> None:
    whole = clinic.run()
    rows = (clinic.home / "visits.csv").read_text().splitlines(keepends=True)
    (clinic.home / "visits.csv").write_text("".join(row for row in rows if not row.startswith("p003")))
    without = clinic.run()
    assert public_parts(whole.release) == public_parts(without.release)
    study = "study.toml"
    assert (whole.release.path / study).read_text() == (without.release.path / study).read_text()


def test_no_un_noised_figure_in_the_release(clinic: Clinic) -> None:
    """Two runs differ in every exact figure and, but for names, time and hashes, in no letter of what is published."""
    # looking for the figures in the text is no test: bounds stand there, and 0.2455 may be a Brier score as well
    exact, texts = [], []
    for _ in range(2):
        release = clinic.run().release
        figures = json.loads((release.internal / "figures.json").read_text())
        exact.append({m["metric"]: m["value"] for m in figures["metrics"] if m["value"] is not None})
        certificate = release.certificate
        assert certificate.ledger is not None
        names = (release.path.name, certificate.created, certificate.ledger.reservation)
        text = ""
        for file in sorted(release.path.iterdir()):
            if file.suffix in (".json", ".html", ".toml"):
                text += f"{file.name}\n{file.read_text()}\n"
        for name in (*names, *certificate.artefacts.values()):
            text = text.replace(name, "...")
        texts.append(text)
        assert "p003" not in text, "no contributor id in a release"
    assert exact[0] and exact[0] != exact[1]
    assert texts[0] == texts[1]


def test_model_predicts_and_learns_the_easy_rule(clinic: Clinic) -> None:
    clinic.write(texts={"steps = 30": "steps = 200", "epsilon = 3.0": "epsilon = 9.0"})
    outcome = clinic.run()
    model = confide.load(outcome.release.path)
    table = pl.DataFrame({"pressure": [90.0, 180.0], "sex": ["f", "f"]})
    low, high = model.predict(table)["probability"].to_list()
    assert 0 < low < high < 1
    assert model.certificate.name == "clinic"


def test_tampered_weights_are_not_loaded(clinic: Clinic) -> None:
    outcome = clinic.run()
    weights = outcome.release.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(VerificationError, match="not the certified"):
        confide.load(outcome.release.path)


def test_seed_stamps_the_certificate(clinic: Clinic) -> None:
    clinic.write(texts={"steps = 30": "steps = 30\nseed = 7"})
    assert "for testing only" in clinic.run().release.certificate.stamps


def test_sources_share_contributors(clinic: Clinic) -> None:
    (clinic.home / "more.csv").write_text(visits(60, seed=2).replace(",0,", ",90,", 1))
    text = clinic.study.read_text()
    second = '[[data]]\nsource = "more.csv"\ncontributor = "patient"\n\n[columns.pressure]'
    clinic.study.write_text(text.replace('entry = "visit"\n', "").replace("[columns.pressure]", second, 1))
    outcome = clinic.run()
    figures = json.loads((outcome.release.internal / "figures.json").read_text())
    data = figures["data"]
    assert data["training_contributors"] + data["held_out_contributors"] == 60
    with Ledger.open(clinic.url) as ledger:
        assert ledger.status().contributors <= 60


def test_public_histogram_makes_it_zero_out(clinic: Clinic) -> None:
    clinic.write(texts={"max_entries = 5": "entry_counts = {1 = 20, 2 = 15, 3 = 10, 4 = 10, 5 = 5}\nmax_entries = 5"})
    certificate = clinic.run().release.certificate
    assert certificate.relation == "zero-out"
    assert any("histogram" in fact.what for fact in certificate.assumed_public)


def test_paid_histogram_is_charged_and_composed(clinic: Clinic) -> None:
    clinic.write(texts={"max_entries = 5": "entry_counts = {epsilon = 0.5}\nmax_entries = 5"})
    certificate = clinic.run().release.certificate
    assert [one.what for one in certificate.spent] == ["noisy histogram of entry counts"]
    assert all(3.0 < c.epsilon <= 3.5 for c in certificate.classes)
    with Ledger.open(clinic.url) as ledger:
        assert [r.state for r in ledger.reservations()] == ["committed", "committed"]


def test_preview_is_stamped(clinic: Clinic) -> None:
    clinic.write(texts={"max_entries = 5": 'entry_counts = "preview"\nmax_entries = 5'})
    assert "parameters chosen after looking at private counts" in clinic.run().release.certificate.stamps


def test_paid_metrics_leave_and_are_charged(clinic: Clinic) -> None:
    clinic.write(texts={"bootstrap = 60": "bootstrap = 60\nmetrics = {epsilon = 1.0}"})
    outcome = clinic.run()
    assert {one.metric for one in outcome.release.certificate.evaluation} >= {"AUROC"}
    assert all(one.epsilon <= 1.0 for one in outcome.release.certificate.evaluation)
    with Ledger.open(clinic.url) as ledger:
        assert len(ledger.reservations()) == 2
        assert confide.verify(outcome.release.path, ledger=ledger).ok


def test_paid_metrics_compose_what_held_out_people_paid(clinic: Clinic) -> None:
    clinic.write(
        texts={
            "max_entries = 5": "entry_counts = {epsilon = 0.5}\nmax_entries = 5",
            "bootstrap = 60": "bootstrap = 60\nmetrics = {epsilon = 1.0}",
        }
    )
    certificate = clinic.run().release.certificate
    assert all(1.0 < one.epsilon <= 1.5 for one in certificate.evaluation)


def test_paid_metrics_are_made_whoever_is_there(clinic: Clinic) -> None:
    """Nobody falls into the held-out group: the release looks the same as if somebody had."""
    rows = (clinic.home / "visits.csv").read_text().splitlines()
    (clinic.home / "visits.csv").write_text("\n".join([rows[0], *(r for r in rows if r.startswith("p00"))]) + "\n")
    clinic.write(
        texts={"bootstrap = 60": "bootstrap = 60\nmetrics = {epsilon = 1.0}", "holdout = 0.25": "holdout = 0.000001"}
    )
    assert len(clinic.run().release.certificate.evaluation) == 3


def test_failing_internal_figures_do_not_stop_a_release(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    import confide.studies.run as runner

    def broken(*_: object, **__: object) -> None:
        raise ValueError("scores are not finite")

    monkeypatch.setattr(runner, "measure", broken)
    outcome = clinic.run()
    assert "scores are not finite" in (outcome.release.internal / "figures.json").read_text()


def test_consent_levels(clinic: Clinic) -> None:
    rows = (clinic.home / "visits.csv").read_text().splitlines()
    full = [rows[0] + ",consent"] + [r + ("," + ("basic" if int(r[1:4]) % 3 else "full")) for r in rows[1:]]
    (clinic.home / "visits.csv").write_text("\n".join(full) + "\n")
    clinic.write(
        texts={
            "[public]": '[columns.consent]\nrole = "attribute"\n[public]',
            "steps = 30": 'steps = 30\nbudget = {column = "consent", levels = {basic = 1.0, full = 3.0}}',
        }
    )
    certificate = clinic.run().release.certificate
    assert {c.budget for c in certificate.classes} == {1.0, 3.0}
    assert all(c.epsilon <= c.budget for c in certificate.classes)


def test_exhausted_contributors_are_dropped_then_refused(clinic: Clinic, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/small.sqlite"
    Ledger.create(url, cap_epsilon=4.0, cap_delta=1e-3).close()
    run_study(clinic.study, ledger_url=url)
    with pytest.raises(BudgetError):
        run_study(clinic.study, ledger_url=url)
    with Ledger.open(url) as ledger:
        assert len(ledger.reservations()) == 1
    assert not list((clinic.home / "internal").glob("*.run"))


def test_rehearsal_touches_neither_data_nor_ledger(clinic: Clinic) -> None:
    (clinic.home / "visits.csv").unlink()
    lines = rehearse_study(clinic.study)
    assert "Nothing was read" in lines[-1]
    assert clinic.spent() == 0
    assert not (clinic.home / "releases").exists()


def test_ledger_has_to_be_named(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONFIDE_LEDGER", raising=False)
    with pytest.raises(InputError, match="no ledger was named"):
        run_study(clinic.study)


def test_ledger_from_environment(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_LEDGER", clinic.url)
    run_study(clinic.study)
    assert clinic.spent() == 1


@pytest.mark.parametrize("strategy", ["contributor", "scale", "uniform", "truncate(2)"])
def test_strategies_run(clinic: Clinic, strategy: str) -> None:
    clinic.write(texts={'"individual"': f'"{strategy}"'})
    assert all(c.epsilon <= 3.0 for c in clinic.run().release.certificate.classes)


def test_rows_without_ids_are_stamped_per_entry(clinic: Clinic) -> None:
    clinic.write(
        texts={
            'contributor = "patient"\nentry = "visit"': 'contributor = "row"',
            "max_contributors = 100": "max_contributors = 500",
        }
    )
    certificate = clinic.run().release.certificate
    assert certificate.unit == "entry"
    assert "per entry, not per person" in certificate.stamps


BROKEN = """
from torch import nn

class Batchy(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))

class Mixing(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
    def forward(self, x):
        return self.layer(x - x.mean(0))
"""


@pytest.mark.parametrize(("model", "says"), [("Batchy", "batch normalisation"), ("Mixing", "entr")])
def test_model_that_mixes_entries_is_refused_before_spending(clinic: Clinic, model: str, says: str) -> None:
    (clinic.home / "broken_models.py").write_text(BROKEN)
    clinic.study.write_text(clinic.study.read_text() + f'\n[model]\nname = "broken_models:{model}"\n')
    with pytest.raises(InputError, match=says):
        clinic.run()
    assert clinic.spent() == 0


def test_own_model_trains_and_loads(clinic: Clinic) -> None:
    (clinic.home / "own_models.py").write_text(
        "from torch import nn\n"
        "def small(inputs, outputs, width=4):\n"
        "    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))\n"
    )
    clinic.study.write_text(clinic.study.read_text() + '\n[model]\nname = "own_models:small"\noptions = {width = 3}\n')
    outcome = clinic.run()
    loaded = confide.load(outcome.release.path, base=clinic.home)
    table = pl.DataFrame({"pressure": [100.0], "sex": ["m"]})
    assert 0 < loaded.predict(table)["probability"][0] < 1


@pytest.mark.parametrize(
    ("cell", "says"),
    [("999.0", "bounds"), ("", "missing"), ("high", "number")],
)
def test_bad_cells_are_refused_before_spending(clinic: Clinic, cell: str, says: str) -> None:
    rows = (clinic.home / "visits.csv").read_text().splitlines()
    parts = rows[5].split(",")
    parts[2] = cell
    rows[5] = ",".join(parts)
    (clinic.home / "visits.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match=says) as caught:
        clinic.run()
    assert "row 6" in str(caught.value) or "line 6" in str(caught.value)
    assert "pressure" in str(caught.value)
    assert clinic.spent() == 0


def test_budget_that_no_plan_meets(clinic: Clinic) -> None:
    clinic.write(texts={"epsilon = 3.0": "epsilon = 1e-4"})
    with pytest.raises(InputError):
        clinic.run()
    assert clinic.spent() == 0


def test_an_unconfirmed_draft_is_refused(clinic: Clinic) -> None:
    clinic.write(texts={"bounds = [60, 220]": "bounds = [60, 220]   # CONFIRM: read from the data"})
    with pytest.raises(InputError, match="nobody has confirmed") as caught:
        clinic.run()
    assert f"lines {1 + clinic.study.read_text()[: clinic.study.read_text().index('CONFIRM')].count(chr(10))}" in str(
        caught.value
    )
    assert clinic.spent() == 0
    rehearse_study(clinic.study)


def test_a_bound_on_contributors_that_does_not_hold_is_refused(clinic: Clinic) -> None:
    clinic.write(texts={"max_contributors = 100": "max_contributors = 20"})
    with pytest.raises(InputError, match="more contributors than the declared"):
        clinic.run()
    assert clinic.spent() == 0


def test_ledger_and_folder_know_a_release_by_one_name(clinic: Clinic) -> None:
    outcome = clinic.run()
    with Ledger.open(clinic.url) as ledger:
        assert ledger.reservations()[0].release == outcome.release.path.name


def test_price_can_be_declined(clinic: Clinic) -> None:
    class No(Quiet):
        def price(self, price: object) -> bool:
            return False

    with pytest.raises(InputError, match="not accepted"):
        clinic.run(watcher=No())
    assert clinic.spent() == 0


def test_non_finite_value_in_a_model_never_stops_a_run(clinic: Clinic) -> None:
    rows = (clinic.home / "visits.csv").read_text().splitlines()
    for i in range(1, 60):  # 160 is exactly 0.25 on the scale from -1 to 1
        parts = rows[i].split(",")
        rows[i] = ",".join([*parts[:2], "160", *parts[3:]])
    (clinic.home / "visits.csv").write_text("\n".join(rows) + "\n")
    (clinic.home / "own_nan.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Nan(nn.Module):\n"
        "    def __init__(self, inputs, outputs):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(inputs, outputs)\n"
        "    def forward(self, x):\n"
        "        y = self.layer(x)\n"
        "        return y + torch.where(x[:, :1] == 0.25, float('nan'), 0.0)\n"
    )
    clinic.study.write_text(clinic.study.read_text() + '\n[model]\nname = "own_nan:Nan"\n')
    outcome = clinic.run()
    events = json.loads((outcome.release.internal / "figures.json").read_text())["events"]
    assert next(e["count"] for e in events if "not finite" in e["what"]) > 0
    weights = confide.load(outcome.release.path, base=clinic.home).model.state_dict()
    assert all(np.isfinite(value.numpy()).all() for value in weights.values())


def test_study_defaults_delta_from_bound(clinic: Clinic) -> None:
    clinic.write(texts={"delta = 1e-4\n": ""})
    assert load_study(clinic.study).delta == pytest.approx(0.1 / 100)


def test_environment_is_left_alone(clinic: Clinic) -> None:
    before = dict(os.environ)
    clinic.run()
    assert dict(os.environ) == before


def test_the_price_names_what_the_same_data_paid_before(clinic: Clinic) -> None:
    prices: list[tuple[str, ...]] = []

    class Refusing(Quiet):
        def price(self, price: Price) -> bool:
            prices.append(price.lines)
            return len(prices) < 2

    clinic.run(watcher=Refusing())
    with pytest.raises(InputError, match="not accepted"):
        clinic.run(watcher=Refusing())
    assert not any("earlier release" in line for line in prices[0])
    assert any("1 earlier release of" in line for line in prices[1])
