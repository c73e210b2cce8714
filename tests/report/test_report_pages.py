"""Pages say what they must, hold nothing they must not, and show every text as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from pydantic import ValidationError

from confide.release import Certificate, guarantee_of
from confide.report import (
    UNPROTECTED,
    InternalFigures,
    attacker_sentence,
    epsilon,
    guarantee_sentence,
    internal_report,
    release_report,
)
from confide.report.svg import DotRow, Series, dot_chart, plot

VOID = {"meta", "br", "img", "hr", "input", "link"}
SVG = {"path", "rect", "line", "circle"}


class Page(HTMLParser):
    """Read a page strictly: every tag closed in order, every attribute kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


@pytest.fixture(scope="module")
def pages(certificate, internal_figures, nasty) -> dict[str, Page]:
    return {
        "release": Page(release_report(certificate, "version = 1\n# " + nasty)),
        "internal": Page(internal_report(internal_figures)),
    }


@pytest.mark.parametrize("which", ["release", "internal"])
def test_nothing_typed_by_anyone_becomes_markup(pages, which):
    page = pages[which]
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.words.count("<script>alert('x')</script>") >= 5, "it must be shown, as text"


@pytest.mark.parametrize("which", ["release", "internal"])
def test_one_file_and_no_network(pages, which):
    page = pages[which]
    assert not set(page.tags) & {"link", "iframe", "object", "embed", "base", "form", "audio", "video"}
    loaded = [a for a in page.attributes if a[1] in ("src", "href", "srcset", "data", "action", "xlink:href")]
    assert all(value.startswith("#") for _, _, value in loaded)
    policies = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    assert any("default-src 'none'" in value and "style-src 'unsafe-inline'" in value for value in policies)


def test_ids_are_unique_and_links_arrive(pages):
    for page in pages.values():
        ids = [value for _, name, value in page.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)


def test_a_release_page_says_what_it_must(pages, certificate):
    page = pages["release"]
    for heading in (
        "The guarantee by number of entries",
        "What an attacker could do at best",
        "How it was made",
        "What the result is worth",
        "Assumed public",
        "Learnt from the data and paid for",
        "What this does not cover",
        "How to verify",
        "How to cite",
        "The study as run",
    ):
        assert heading in page.headings
    assert guarantee_sentence(certificate) in page.words
    assert attacker_sentence(certificate) in page.words
    assert certificate.artefacts["model.safetensors"] in page.words
    assert "confide verify FOLDER --ledger URL" in page.words
    assert "For testing only." in page.words
    for one in certificate.not_covered:
        assert one[1:] in page.words
    assert UNPROTECTED not in page.words.lower()


def test_the_sentence_is_about_the_worst_class(certificate):
    worst = max(c.epsilon for c in certificate.classes)
    sentence = guarantee_sentence(certificate)
    assert f"epsilon at most {epsilon(worst)}" in sentence
    assert "at most 5 of them used" in sentence
    assert epsilon(certificate.best.epsilon) in sentence


def test_the_attacker_is_judged_by_the_class_it_hits_hardest(certificate):
    rows = list(certificate.classes)
    rows[0] = rows[0].model_copy(update={"tpr_at_fpr_1pct": 0.987, "posterior_prior_1pct_fpr_1pct": 0.499})
    changed = certificate.model_copy(update={"classes": tuple(rows)})
    assert "98.7%" in attacker_sentence(changed)
    assert "49.9%" in attacker_sentence(changed)


def test_the_report_is_made_of_the_certificate_alone(certificate):
    again = Certificate.model_validate_json(certificate.to_json())
    assert release_report(again, "x") == release_report(certificate, "x")


def test_the_roc_bound_drawn_is_the_accountants(certificate):
    text = release_report(certificate)
    exposed = max(certificate.classes, key=lambda c: c.tpr_at_fpr_1pct)
    tpr = 1 - float(guarantee_of(exposed).tradeoff(0.5))
    x, y = 52 + 0.5 * (440 - 14 - 52), 256 - tpr * (256 - 30)
    near = [abs(float(b) - y) for a, b in re.findall(r"[ML](\d+\.\d) (\d+\.\d)", text) if abs(float(a) - x) < 0.06]
    assert min(near) < 0.11


def test_a_class_without_a_guarantee_is_called_that(certificate):
    row = certificate.classes[-1].model_copy(update={"epsilon": np.inf})
    changed = certificate.model_copy(update={"classes": (*certificate.classes[:-1], row)})
    assert "no finite guarantee" in guarantee_sentence(changed)
    assert "∞ (no guarantee)" in Page(release_report(changed)).words


def test_a_hundred_classes_are_all_listed_at_the_end(certificate):
    many = tuple(certificate.classes[0].model_copy(update={"entries": k}) for k in range(1, 101))
    page = Page(release_report(certificate.model_copy(update={"classes": many})))
    assert "Every class" in page.headings
    assert "of 100 classes" in page.words


def test_without_metrics_the_page_says_why(certificate):
    page = Page(release_report(certificate.model_copy(update={"evaluation": (), "spent": (), "assumed_public": ()})))
    assert "No figure about the quality of the result was released" in page.words
    assert "Nothing was assumed public" in page.words


def test_an_internal_page_is_stamped_first_of_all(pages, internal_figures):
    page = pages["internal"]
    title, first = page.words.strip().split("\n")[:2]
    assert UNPROTECTED in title.lower()
    assert first.lower().startswith(UNPROTECTED)
    assert "table-header-group" in internal_report(internal_figures)
    for heading in ("What the result is worth", "Calibration", "Learning", "What was counted", "The data", "Notes"):
        assert heading in page.headings


def test_internal_figures_round_trip_and_refuse_unknown_keys(internal_figures):
    again = InternalFigures.model_validate_json(internal_figures.to_json())
    assert internal_report(again) == internal_report(internal_figures)
    with pytest.raises(ValidationError):
        internal_report({"name": "x", "surprise": 1})


def test_undefined_figures_become_null_and_a_dash():
    figures = InternalFigures.model_validate(
        {"name": "x", "metrics": [{"model": "m", "value": float("nan"), "low": float("nan"), "high": 1.0}]}
    )
    assert '"value": null' in figures.to_json()
    assert "–" in internal_report(figures)


def test_a_page_of_nothing_but_a_name():
    page = Page(internal_report({"name": "x"}))
    assert page.headings == ["x"]


def points(figure: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in re.findall(r"[ML](\d+\.\d) (\d+\.\d)", figure)]


def test_a_line_goes_through_its_points():
    figure = plot(
        [Series("a", [0, 1, 2], [0, 5, 10])], title="t", x_label="x", y_label="y", x_range=(0, 2), y_range=(0, 10)
    )
    assert points(figure)[:3] == [(52.0, 256.0), (239.0, 143.0), (426.0, 30.0)]


def test_a_gap_breaks_the_line_and_log_axes_leave_out_zero():
    figure = plot([Series("a", [1, 2, 3, 4], [1, float("nan"), 3, 4])], title="t", x_label="x", y_label="y")
    path = re.search(r'<path d="(M[^"]*)" fill="none"', figure).group(1)
    assert path.count("M") == 2
    figure = plot([Series("a", [0, 0.01, 1], [0, 0.1, 1])], title="t", x_label="x", y_label="y", x_log=True, y_log=True)
    assert "nan" not in figure


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [-2.0, 5.0], [1e-9, 1e9]])
def test_any_data_gives_a_finite_picture(values):
    for kind in ("line", "step", "dots", "bars"):
        figure = plot([Series("a", list(range(len(values))), values, kind)], title="t", x_label="x", y_label="y")
        Page(figure)
        assert not re.search(r"nan|inf(?!o)", figure)
    Page(dot_chart([DotRow("r", v, v - 1, v + 1) for v in values], title="t", x_label="x"))


def test_series_differ_in_more_than_colour():
    many = [Series(f"s{i}", [0, 1], [i, i]) for i in range(6)]
    figure = plot(many, title="t", x_label="x", y_label="y")
    dashes = set(re.findall(r'stroke-dasharray="([^"]*)"', figure))
    assert len(dashes) >= 5


def test_privacy_against_utility_is_a_curve_over_budgets_beside_the_non_private_model():
    rows = [(f"epsilon {e:g}", 0.7 + e / 50, "release") for e in (8.0, 1.0, 4.0)] + [("non-private", 0.9, "baseline")]
    budgets = [
        {"model": model, "value": value, "low": value - 0.05, "high": value + 0.05, "role": role}
        for model, value, role in rows
    ]
    page = internal_report(InternalFigures.model_validate({"name": "s", "budgets": budgets}))
    assert "epsilon (logarithmic)" in page and "Every budget with its interval" in page
    alone = internal_report(InternalFigures.model_validate({"name": "s", "budgets": [budgets[0], budgets[3]]}))
    assert "epsilon (logarithmic)" not in alone and "Every budget with its interval" in alone


def test_few_powers_of_ten_have_ticks_in_between():
    svg = plot(
        [Series("a", [1.0, 8.0], [0.0, 1.0])], title="t", x_label="x", y_label="y", x_range=(0.9, 9.0), x_log=True
    )
    assert all(f">{tick}</text>" in svg for tick in ("1", "2", "5"))
