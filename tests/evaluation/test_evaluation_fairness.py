"""Figures by group: two senses of parity kept apart, suppression, and intervals that know who the rows belong to."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from confide.errors import InputError
from confide.evaluation import (
    comorbidity,
    fairness,
    gap_correlation,
    mcc,
    nll,
    null_ece,
    selective_curve,
    sensitivity,
    youden_threshold,
)


def people(n: int = 400, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    s = np.clip(0.3 * y + 0.7 * rng.random(n), 0, 1)
    return y, s, np.arange(n), np.where(rng.random(n) < 0.3, "f", "m")


def test_figures_inside_a_group_are_those_of_its_rows():
    y, s, who, sex = people()
    found = fairness(y, s, who, sex, replicates=50, threshold=0.4)
    for name in ("f", "m"):
        mine, rest = sex == name, sex != name
        group = found.group(name)
        assert group.contributors == mine.sum()
        assert group.metrics["AUROC"].value == pytest.approx(oracle.roc_auc_score(y[mine], s[mine]))
        assert group.metrics["MCC"].value == pytest.approx(oracle.matthews_corrcoef(y[mine], s[mine] >= 0.4))
        hit = s >= 0.4
        expected = {
            "positive_rate_difference": hit[mine].mean() - hit[rest].mean(),
            "accuracy_difference": (hit == y)[mine].mean() - (hit == y)[rest].mean(),
            "equal_opportunity_difference": hit[mine & (y == 1)].mean() - hit[rest & (y == 1)].mean(),
        }
        for key, value in expected.items():
            assert group.differences[key].value == pytest.approx(value), key
    f, m = found.group("f").differences, found.group("m").differences
    for key in f:
        assert f[key].value == pytest.approx(-m[key].value)  # swapping the groups flips the sign


def test_a_group_of_everybody_is_the_whole_and_is_compared_with_nobody():
    y, s, who, _ = people()
    found = fairness(y, s, who, np.full(y.size, "all"), replicates=20)
    assert found.group("all").metrics["AUROC"].value == pytest.approx(oracle.roc_auc_score(y, s))
    assert found.group("all").differences == {}


def test_equal_accuracies_give_a_difference_of_zero():
    y = np.tile([0, 1], 40)
    s = np.tile([0.1, 0.9, 0.9, 0.1], 20)
    found = fairness(y, s, np.arange(80), np.repeat(["a", "b"], 40), replicates=20)
    assert found.group("a").differences["accuracy_difference"].value == 0.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        visits = rng.integers(1, 5, 120)
        who = np.repeat(np.arange(120), visits)
        right = (rng.random(120) < 0.7)[who]  # all visits of a person are right or wrong together
        y = rng.integers(0, 2, who.size)
        s = np.where(right, y, 1 - y).astype(float)
        sex = np.where(np.arange(120) % 2 == 0, "f", "m")[who]
        one = fairness(y, s, who, sex, unit="entry", replicates=200, rng=rng).group("f").metrics["accuracy"]
        covered += one.low <= 0.7 <= one.high
    assert covered >= 50  # 57 expected; intervals over entries would cover about 45


def test_small_groups_have_no_figures_but_a_reason():
    y, s, who, sex = people()
    sex = sex.astype(object)
    sex[:3] = "x"
    found = fairness(y, s, who, sex, known=("f", "m", "x", "y"), replicates=20)
    assert found.group("x").suppressed == "fewer than 10 people"
    assert found.group("x").metrics == {}
    assert found.group("y").suppressed
    with pytest.raises(InputError, match="no declared group"):
        fairness(y, s, who, sex, known=("f", "m"))
    with pytest.raises(InputError, match="has no group"):
        found.group("z")


def test_one_class_in_a_group_is_undefined_and_never_raises():
    y, s, who, sex = people()
    y = np.where(sex == "f", 0, y)
    found = fairness(y, s, who, sex, replicates=20)
    assert np.isnan(found.group("f").metrics["AUROC"].value)
    assert np.isnan(found.group("f").differences["auroc_difference"].value)


def test_pearson_between_gap_and_size():
    r, p = gap_correlation([-0.1, -0.05, -0.02, 0.0], [10, 50, 100, 200])
    assert r > 0.8
    assert 0 < p < 0.2
    with pytest.raises(InputError, match="four groups"):
        gap_correlation([0.1, 0.2, 0.3], [1, 2, 4])


def test_threshold_metrics_agree_with_scikit_learn():
    y, s, _, _ = people(seed=3)
    w = np.random.default_rng(1).integers(0, 4, y.size).astype(float)
    hit = s >= 0.35
    assert mcc(y, s, w, threshold=0.35) == pytest.approx(oracle.matthews_corrcoef(y, hit, sample_weight=w))
    assert sensitivity(y, s, w, threshold=0.35) == pytest.approx(oracle.recall_score(y, hit, sample_weight=w))
    assert nll(y, s, w) == pytest.approx(oracle.log_loss(y, np.clip(s, 1e-7, 1 - 1e-7), sample_weight=w))
    fpr, tpr, cuts = oracle.roc_curve(y, s, drop_intermediate=False)
    best = np.argmax(tpr - fpr)
    chosen = youden_threshold(y, s)
    assert (s[y == 1] >= chosen).mean() - (s[y == 0] >= chosen).mean() == pytest.approx((tpr - fpr)[best])
    assert chosen == pytest.approx(cuts[best])


def test_calibration_has_a_floor_by_chance():
    rng = np.random.default_rng(0)
    s = rng.random(600)
    null = null_ece(s, bins=15, draws=200, rng=rng)
    assert 0.02 < null.mean < null.high < 0.09
    larger = null_ece(rng.random(20_000), bins=15, draws=50, rng=rng)
    assert larger.mean < null.mean / 4


def test_deferring_the_least_certain_first():
    y = np.array([1, 0, 1, 0])
    s = np.array([0.9, 0.2, 0.45, 0.55])  # the two in the middle are wrong
    share, right = selective_curve(y, s)
    np.testing.assert_allclose(share, [0.25, 0.5, 1.0])
    np.testing.assert_allclose(right, [1.0, 1.0, 0.5])


def test_co_morbidity_counts_the_other_findings_alone():
    rng = np.random.default_rng(0)
    findings = rng.random((300, 5)) < 0.3
    groups = comorbidity(findings, 2, most=3)
    flipped = findings.copy()
    flipped[:, 2] = ~flipped[:, 2]
    assert (groups == comorbidity(flipped, 2, most=3)).all()  # what is predicted never says in which group one is
    others = findings[:, [0, 1, 3, 4]].sum(1)
    names = {0: "no other finding", 1: "1 other finding", 2: "2 other findings"}
    assert groups.tolist() == [names.get(int(n), "3 or more other findings") for n in others]
    report = fairness(findings[:, 2], rng.random(300), np.arange(300), groups, attribute="co-morbidity", replicates=50)
    assert {g.name for g in report.groups} == set(groups.tolist())
    with pytest.raises(InputError, match="column 5 of 5"):
        comorbidity(findings, 5)
    with pytest.raises(InputError, match="no table of 0 and 1"):
        comorbidity([[2, 0]], 0)
