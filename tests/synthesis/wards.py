"""A ward of 150 patients with three visits each, and the smallest study of it that has visits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from confide.ledger import Ledger
from confide.studies.synthesis_run import SynthesisOutcome, run_synthesis

STUDY = """
name = "ward"
[patients]
source = "patients.csv"
contributor = "id"
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[visits]
source = "visits.csv"
contributor = "id"
time = "day"
max_visits = 12
[visits.columns.day]
type = "integer"
bounds = [0, 9]
[privacy]
epsilon = 2.0
delta = 1e-5
"""
# The same with a consent level for every patient, written as the last of their facts.
CONSENTS = (
    STUDY.replace("[visits]\n", '[patients.columns.consent]\nrole = "attribute"\n[visits]\n', 1)
    + 'budget = {column = "consent", levels = {basic = 1.0, full = 2.0}}\n'
)


def write_ward(folder: Path, study: str = STUDY, *, more: str = "", cells: str = "") -> None:
    """Write study and tables; `more` is a further column of patients, `cells` what stands in it (one a patient)."""
    rng = np.random.default_rng(0)
    values = cells.split(",") if cells else [""] * 150
    heading, gap = ("id,sex," + more, ",") if more else ("id,sex", "")
    rows = [f"p{i:03d},{'fm'[i // 2 % 2]}{gap}{values[i]}\n" for i in range(150)]
    days = [f"p{i:03d},{d}\n" for i in range(150) for d in sorted(rng.choice(10, 3, replace=False))]
    (folder / "study.toml").write_text(study)
    (folder / "patients.csv").write_text(heading + "\n" + "".join(rows))
    (folder / "visits.csv").write_text("id,day\n" + "".join(days))


def url_of(folder: Path) -> str:
    """Return the address of the ward's ledger."""
    return f"sqlite:///{folder}/l.sqlite"


def open_books(folder: Path) -> None:
    """Make the ward's ledger: one release at epsilon 2, and no second one."""
    Ledger.create(url_of(folder), cap_epsilon=2.5, cap_delta=1e-4).close()


def run_ward(folder: Path, **more: object) -> SynthesisOutcome:
    """Run the ward's study; the price is accepted."""
    return run_synthesis(
        folder / "study.toml",
        accept=lambda lines: None,
        ledger_url=url_of(folder),
        output=folder / "releases",
        **more,  # type: ignore[arg-type]
    )
