"""A small study on made-up visits: quick to run, with every part that a real one has."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from confide.ledger import Ledger

STUDY = """
version = 1
name = "clinic"

[[data]]
source = "visits.csv"
contributor = "patient"
entry = "visit"

[columns.pressure]
type = "real"
bounds = [60, 220]

[columns.sex]
type = "categorical"
categories = ["f", "m"]

[columns.ill]
role = "label"
classes = [0, 1]
positive = [1]

[public]
max_entries = 5
max_contributors = 100

[privacy]
epsilon = 3.0
delta = 1e-4
strategy = "individual"
noise_multiplier = 1.5
steps = 30

[optimizer]
name = "sgd"
lr = 0.5

[evaluation]
holdout = 0.25
bootstrap = 60

[engine]
checkpoint_every = 5
"""


def visits(people: int = 60, *, seed: int = 1) -> str:
    """Visits of made-up patients as CSV text."""
    rng = np.random.default_rng(seed)
    rows = ["patient,visit,pressure,sex,ill"]
    for person in range(people):
        sex, ill = "fm"[person % 2], int(rng.random() < 0.4)
        for visit in range(int(rng.integers(1, 6))):
            pressure = np.clip(rng.normal(120 + 30 * ill, 12), 60, 220)
            rows.append(f"p{person:03d},{visit},{pressure:.1f},{sex},{ill}")
    return "\n".join(rows) + "\n"


class Clinic:
    """A folder with a study, its data and a ledger."""

    def __init__(self, home: Path) -> None:
        self.home, self.study = home, home / "study.toml"
        self.url = f"sqlite:///{home}/ledger.sqlite"
        (home / "visits.csv").write_text(visits())
        self.write()
        Ledger.create(self.url, cap_epsilon=20.0, cap_delta=1e-3).close()

    def write(self, **replace: str) -> None:
        """Write the study file with lines replaced: the first line that starts with each key, or a text by a text."""
        text = textwrap.dedent(STUDY)
        for old, new in replace.pop("texts", {}).items():  # type: ignore[attr-defined]
            assert old in text, old
            text = text.replace(old, new)
        self.study.write_text(text)

    def run(self, **settings: object):
        """Run the study."""
        from confide.studies import run_study

        return run_study(self.study, ledger_url=self.url, **settings)  # type: ignore[arg-type]

    def spent(self) -> int:
        """How many reservations the ledger holds."""
        with Ledger.open(self.url) as ledger:
            return len(ledger.reservations())
