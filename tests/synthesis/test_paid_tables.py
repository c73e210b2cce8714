"""How useful a synthetic table is may leave for a price, and those pay it on whom it is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from wards import CONSENTS, STUDY, run_ward, url_of, write_ward

from confide.errors import InputError
from confide.evaluation.tables import CodedTable
from confide.ledger import Ledger
from confide.mechanisms import SeededNoise
from confide.release import Release, verify
from confide.studies import state
from confide.studies import synthesis_paid as synthetic_paid
from confide.studies.synthesis_paid import PENALTY, Buyer, Logistic
from confide.synthesis import Panel
from confide.synthesis.coding import Coded
from confide.synthesis.study import parse_synthesis_study

BOUGHT = STUDY + '[evaluation]\nholdout = 0.4\noutcome = "sex"\nmetrics = {epsilon = 7.0}\n'


class Recorder(SeededNoise):
    """Noise of a fixed seed that remembers what it was added to."""

    def __init__(self):
        super().__init__(0)
        self.exact = []

    def add_normal(self, values, *, scale):
        self.exact.append((np.array(values, dtype=float), scale))
        return super().add_normal(values, scale=scale)


def bought(study, held_out, synthetic):
    noise = Recorder()
    buyer = Buyer(study, held_out, None, state.RunState("r", "", "00" * 32), lambda: None)
    object.__setattr__(buyer, "_noise", lambda: noise)
    object.__setattr__(buyer, "_reserve", lambda index, cost: np.ones(index.n_contributors, dtype=bool))
    figures = buyer.figures(synthetic)
    return noise.exact, figures


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), outcome=st.sampled_from(["sex", "day"]), patients=st.integers(2, 25))
def test_removing_any_patient_set_aside_moves_the_histogram_by_at_most_one(seed, outcome, patients):
    text = BOUGHT.replace('outcome = "sex"', f'outcome = "{outcome}"')
    study = parse_synthesis_study(text)
    rng = np.random.default_rng(seed)
    domain = study.domain()

    def panel(number):
        counts = rng.integers(0, 5, number)
        counts[0] = 60  # somebody with very many visits
        rows = int(counts.sum())
        return Panel.from_codes(
            domain,
            static=rng.integers(0, domain.static[0].cells, (number, 1)),
            visit=rng.integers(0, domain.visit[0].cells, (rows, 1)),
            counts=counts,
        )

    synthetic, real = panel(40), panel(patients)
    coded = Coded(real, np.array([f"p{i}" for i in range(patients)]), None)
    whole, figures = bought(study, coded, synthetic)
    assert figures
    for gone in {0, int(rng.integers(patients))}:
        part, fewer = bought(study, coded.subset(np.arange(patients) != gone), synthetic)
        assert len(part) == len(whole) and [f.metric for f in fewer] == [f.metric for f in figures]
        for (a, scale), (b, again) in zip(whole, part, strict=True):
            assert np.linalg.norm(a - b) <= 1 + 1e-9
            assert scale == again > 0


def test_nobody_set_aside_pays_more_than_they_agreed_to():
    paid = '[evaluation]\nholdout = 0.4\noutcome = "sex"\nmetrics = {epsilon = %s}\n'
    parse_synthesis_study(CONSENTS + paid % "1.0")
    with pytest.raises(InputError, match="some agreed to 1: give"):
        parse_synthesis_study(CONSENTS + paid % "1.1")


def test_accuracy_is_at_one_half_wherever_scores_are(monkeypatch):
    """Scores of a rare outcome all lie far below one half, and accuracy at the nearest border is another figure."""
    study = parse_synthesis_study(BOUGHT)
    domain, n = study.domain(), 4_000
    days = np.repeat(np.arange(10), n // 10)
    rare = (np.tile(np.arange(n // 10), 10) < 5 * days).astype(np.int64)  # 0 to 11% of a day, 5.6% of all
    panel = Panel.from_codes(domain, static=rare[:, None], visit=days[:, None], counts=np.ones(n, np.int64))
    seen, real = [], synthetic_paid.paid_auroc

    def watched(**given):
        seen.append(given)
        return real(**given)

    monkeypatch.setattr(synthetic_paid, "paid_auroc", watched)
    _, figures = bought(study, Coded(panel, np.array([f"p{i}" for i in range(n)]), None), panel)
    assert 0.5 in seen[0]["edges"] and max(seen[0]["scores"]) < 0.2
    accuracy = next(one for one in figures if one.metric == "accuracy")
    assert accuracy.value == pytest.approx(0.944, abs=0.01)  # nobody is called positive


def test_the_model_is_a_ridge_logistic_regression():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 500), rng.integers(0, 4, 500)
    y = rng.random(500) < 0.2 + 0.2 * a
    table = CodedTable({"a": a, "b": b}, {"a": 3, "b": 4}, np.arange(500))
    ours = Logistic.fit(table, ("a", "b"), y).scores(table)
    one_hot = np.column_stack([np.eye(3)[a], np.eye(4)[b], np.ones(500)])
    theirs = (
        LogisticRegression(C=1 / PENALTY, fit_intercept=False, tol=1e-8).fit(one_hot, y).predict_proba(one_hot)[:, 1]
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


class Killed(BaseException):
    """Stands for a power cut."""


def die(*_, **__):
    raise Killed


def test_the_figure_is_in_the_release_and_paid_once_by_those_set_aside(tmp_path, monkeypatch):
    write_ward(tmp_path, BOUGHT)
    Ledger.create(url_of(tmp_path), cap_epsilon=9.0, cap_delta=1e-4).close()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", die)
        with pytest.raises(Killed):
            run_ward(tmp_path)
    (first,) = (tmp_path / "releases").iterdir()
    first.rename(tmp_path / "published")  # it got out, and nobody knows
    outcome = run_ward(tmp_path, resume=True)
    certificate = outcome.release.certificate
    before = Release.load(tmp_path / "published").certificate
    assert certificate.evaluation == before.evaluation
    assert certificate.artefacts["table.parquet"] == before.artefacts["table.parquet"]  # no second table either
    auroc = next(one for one in certificate.evaluation if "AUROC" in one.metric)
    assert auroc.low <= auroc.value <= auroc.high
    assert "says of sex = m; " in auroc.note
    assert "AUROC" in (outcome.release.path / "report.html").read_text()
    ids = [f"p{i:03d}" for i in range(150)]
    with Ledger.open(url_of(tmp_path)) as ledger:
        assert verify(outcome.release.path, ledger=ledger).ok
        main, figure = ledger.reservations()
        assert main.state == figure.state == "committed"
        assert main.admitted + figure.admitted == 150
        used = ledger.used(ids)
    assert len(set(np.round(used, 9))) == 2  # each pays for one of the two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("holdout = 0.4\n", ""), "give holdout"),
        (('outcome = "sex"\n', ""), "need an outcome"),
    ],
)
def test_a_figure_that_cannot_be_bought_is_refused_with_the_study(change, message):
    with pytest.raises(InputError, match=message):
        parse_synthesis_study(BOUGHT.replace(*change))
