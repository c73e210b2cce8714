"""The risk page shows the accountant's bounds, beside what they rest on."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from confide.accounting import Gaussian
from confide.errors import InputError
from confide.report import RiskCase, guarantee_sentence, percent, risk_cases, risk_report
from confide.report.images import data_url, degraded, phantom, png
from confide.report.risk_page import _FPR, _bound, _curves


def test_three_budgets_stand_side_by_side(risk_cases_of_three_budgets, nasty):
    page = risk_report(risk_cases_of_three_budgets, delta=1e-5, title="t " + nasty, subtitle=nasty)
    assert nasty not in page
    for one in risk_cases_of_three_budgets:
        g = one.guarantee
        assert percent(g.reconstruction(0.01), up=True) in page
        assert percent(g.posterior(0.01, 0.01), up=True) in page
        assert percent(g.advantage(), up=True) in page
    for words in ("upper end: the attacker knows every other record", "lower end: the attacker knows nothing"):
        assert page.lower().count(words) == 1, "each assumption once, beside its figure"
    assert "Suppose an attacker knows everything except whether one person took part" in page


def test_curves_are_the_bounds_and_never_below_guessing(risk_cases_of_three_budgets):
    for case, curve in zip(
        risk_cases_of_three_budgets, _curves(risk_cases_of_three_budgets, _FPR, _bound), strict=True
    ):
        y = np.asarray(curve.y)
        assert np.all(y >= _FPR - 1e-12)
        assert np.all(np.diff(y) >= -1e-9)
        np.testing.assert_allclose(y, 1 - case.guarantee.tradeoff(_FPR), atol=1e-12)


def test_smaller_noise_is_never_shown_as_safer(risk_cases_of_three_budgets):
    curves = _curves(risk_cases_of_three_budgets, _FPR, _bound)
    for safer, weaker in itertools.pairwise(curves):
        assert np.all(np.asarray(weaker.y) >= np.asarray(safer.y) - 1e-6)


def test_without_a_declared_record_nothing_is_said_about_sharpness():
    page = risk_report([RiskCase("everybody", Gaussian(noise_multiplier=2.0).guarantee())], delta=1e-5)
    assert "they were not declared" in page
    assert "<img" not in page
    assert "mu (Gaussian DP), where exact" in page


def test_cases_of_a_release(certificate):
    cases = risk_cases(certificate)
    assert 1 <= len(cases) <= 3
    tpr = [float(case.guarantee.reconstruction_bound(0.01)) for case in cases]
    assert tpr[0] == pytest.approx(max(c.tpr_at_fpr_1pct for c in certificate.classes), rel=2e-3)
    assert "middle class" in " ".join(case.name for case in cases), "nobody's median is known here"
    assert risk_report(cases, delta=certificate.delta, subtitle=guarantee_sentence(certificate))


def test_the_median_contributor_is_named_where_counts_are_public(certificate):
    rows = [
        dict(row) | {"contributors": n} for row, n in zip(certificate.plan["classes"], (1, 1, 1, 90, 1), strict=True)
    ]
    counted = certificate.model_copy(update={"plan": certificate.plan | {"classes": rows, "histogram": "public"}})
    assert any(case.name == "median contributor (4 entries)" for case in risk_cases(counted))


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_or_too_many_cases_are_refused(count):
    with pytest.raises(InputError, match="between one and six"):
        risk_report([RiskCase("x", Gaussian(noise_multiplier=2.0).guarantee())] * count, delta=1e-5)


def test_pictures_are_png_of_the_stated_sharpness():
    picture = phantom()
    back = np.asarray(Image.open(io.BytesIO(png(picture))), dtype=float) / 255
    np.testing.assert_allclose(back, picture, atol=0.5 / 255 + 1e-9)
    assert data_url(picture).startswith("data:image/png;base64,")
    # before contrast is stretched, the mean squared error is that of the stated ratio
    noise = np.random.default_rng(7).normal(scale=10 ** (-15 / 20), size=picture.shape)
    assert -10 * np.log10(np.mean(noise**2)) == pytest.approx(15, abs=0.2)
    near, far = (np.corrcoef(degraded(picture, level).ravel(), picture.ravel())[0, 1] for level in (25.0, 0.0))
    assert near > 0.9 > 0.4 > far
