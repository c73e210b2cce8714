"""Every page in a real browser: a phone, a desk, paper; no network, nothing cut off."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from chromium import Chromium

from confide.report import (
    UNPROTECTED,
    internal_report,
    release_report,
    risk_report,
    table_evaluation_report,
    table_release_report,
)

pytestmark = pytest.mark.browser

CUT_OFF = """
(() => {
  const wide = document.documentElement.clientWidth, out = [];
  for (const node of document.querySelectorAll('body *')) {
    if (node.parentElement.closest('.scroll, pre')) continue;  // these scroll within themselves
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1)) out.push(node.tagName + ' ' + Math.round(box.right));
  }
  return out;
})()
"""
TEXT_OUTSIDE_PLOT = """
(() => {
  const out = [];
  for (const svg of document.querySelectorAll('figure > svg')) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        out.push(text.textContent);
    }
  }
  return out;
})()
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('figure > svg text')].map(t => {
  const svg = t.closest('svg');
  return parseFloat(getComputedStyle(t).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
}))
"""


_LONG = "a category with a name that is much longer than anybody would wish"
MARGINALS = {
    "patients": 511.7,
    "tables": [
        {
            "columns": [column],
            "level": "patient",
            "cells": [["<b>f</b>", _LONG, "missing"]],
            "noisy": [0.6, 0.45, -0.05],
            "standard_error": 0.03,
            "estimate": [0.58, 0.42, 0.0],
        }
        for column in ("sex", "number of visits", _LONG)
    ],
}
_VIEW = {
    "column": _LONG,
    "level": "visit",
    "cells": ["0 to 10", _LONG, "missing"],
    "real": [0.5, 0.4, 0.1],
    "synthetic": [0.55, 0.35, 0.1],
    "held_out": [0.45, 0.45, 0.1],
    "distance": 0.05,
    "floor": 0.02,
}
TABLES = {
    "name": "clinic",
    "patients": {"training": 100, "synthetic": 99},
    "visits": {"training": 400, "synthetic": 390},
    "columns": [_VIEW, {**_VIEW, "held_out": None, "floor": None}],
    "gaps": _VIEW,
    "fidelity": [
        {
            "ways": 2,
            "per": "visit",
            "mean": 0.1,
            "floor": 0.05,
            "worst": 0.3,
            "worst_columns": ["a", _LONG],
            "tables": 9,
            "ten_worst": [(["a", _LONG], 0.3, 0.1)],
        }
    ],
    "course": [{"label": "real", "x": [0, 1, 2], "y": [1, None, 2], "y_label": _LONG}],
    "violations": [{"rule": "stage never decreases", "synthetic": 0, "real": 3, "rows": 390}],
    "utility": [
        {
            "outcome": "died",
            "positive": ["1"],
            "unit": "patient",
            "people": 40,
            "tested_on": "held-out patients",
            "rows": [
                {"learner": "boosted trees", "trained_on": t, "value": 0.8, "low": 0.7, "high": 0.9}
                for t in ("synthetic", "real", "100 real + synthetic")
            ],
            "differences": [
                {"learner": "boosted trees", "what": "synthetic added to real", "value": 0.0, "low": -0.1, "high": 0.1}
            ],
        }
    ],
    "left_out": ["nothing <i>else</i>"],
}


@pytest.fixture(scope="module")
def browser():
    with Chromium() as one:
        yield one


@pytest.fixture(scope="module")
def files(certificate, internal_figures, risk_cases_of_three_budgets, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "table": table_release_report(certificate, "version = 1", MARGINALS),
        "evaluation": table_evaluation_report(TABLES),
        "release": release_report(certificate, "version = 1\nname = 'x'\n" + "long = '" + "y" * 300 + "'"),
        "internal": internal_report(internal_figures),
        "risk": risk_report(risk_cases_of_three_budgets, delta=1e-5),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("which", ["release", "internal", "risk", "table", "evaluation"])
def test_a_page_fits_and_asks_nobody(browser, files, which, width):
    browser.open(files[which], width=width)
    assert browser.evaluate("window.innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert browser.evaluate(CUT_OFF) == []
    assert browser.evaluate(TEXT_OUTSIDE_PLOT) == []
    assert browser.evaluate(SMALLEST_TEXT) >= 9.5
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [files[which].resolve().as_uri()]
    assert browser.complaints() == []


@pytest.mark.parametrize("which", ["release", "internal", "risk", "table", "evaluation"])
def test_a_page_renders(browser, files, which):
    browser.open(files[which], width=1280)
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    assert browser.evaluate("document.querySelectorAll('h2').length") >= 6
    assert browser.evaluate(
        "[...document.querySelectorAll('figure > svg')].every(s => s.getBoundingClientRect().height > 80)"
    )
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("document.querySelectorAll('script').length") == 0
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth == 96)")


def test_the_stamp_is_on_every_printed_page(browser, files, tmp_path):
    browser.open(files["internal"], width=1280)
    file = tmp_path / "internal.pdf"
    file.write_bytes(browser.pdf())
    assert shutil.which("pdftotext"), "printed pages are read with poppler (Debian: apt-get install poppler-utils)"
    text = subprocess.run(["pdftotext", "-layout", str(file), "-"], capture_output=True, text=True, check=True).stdout
    pages = text.split("\f")[:-1]
    assert len(pages) > 2
    for number, page in enumerate(pages, 1):
        assert re.search(UNPROTECTED, page, re.IGNORECASE), f"page {number} carries no stamp"
