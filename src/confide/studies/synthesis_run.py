"""Running a synthesis study: reserve the price, learn the tables through noise, write synthetic ones, commit.

The order is the promise, as for training: everything that can be wrong is found first; then the price is shown and
accepted; then the ledger charges everybody who takes part; only then is the first noisy answer drawn.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from confide.accounting import Gaussian, Guarantee
from confide.errors import BudgetError, InputError, RunError
from confide.ledger import Ledger
from confide.mechanisms import OSNoise, SecureNoise, SeededNoise
from confide.release import LedgerReference, Release, outside_releases
from confide.report import guarantee_sentence
from confide.studies import state
from confide.studies.opening import check_ledger, flow_of, open_ledger, refuse_unconfirmed
from confide.studies.resuming import already_written
from confide.studies.synthesis_people import gather
from confide.synthesis import Meter, NoisyModel, Panel
from confide.synthesis.coding import Coded
from confide.synthesis.contributions import Patients
from confide.synthesis.journal import FileJournal
from confide.synthesis.linked import bins_of, events_for, linked_patients
from confide.synthesis.meter import gaussian_mu
from confide.synthesis.sections import PaidFigure
from confide.synthesis.spool import StreamedCoded
from confide.synthesis.study import SynthesisStudy, parse_synthesis_study


@dataclass(frozen=True)
class Level:
    """One class of patients: those with the same budget."""

    entries: int
    budget: float
    entries_used: int
    rate: float = 1.0
    clip_norm: float = 1.0


@dataclass(frozen=True)
class TablePlan:
    """What a certificate states of a synthesis; fixed before any data is read."""

    delta: float
    method: dict[str, Any]
    classes: tuple[Level, ...]
    guarantees: dict[float, Guarantee]
    relation: str = "add/remove"
    histogram: str = "none"
    looks: tuple[str, ...] = field(default=())

    def guarantee(self, level: Level) -> Guarantee:
        """Return what a patient of a class pays at most."""
        return self.guarantees[level.budget]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the certificate."""
        return {"synthesis": self.method, "delta": self.delta, "histogram": self.histogram, "looks": list(self.looks)}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class SynthesisOutcome:
    """Where a finished synthesis left things, and what to tell the user."""

    release: Release
    lines: tuple[str, ...]
    paths: dict[str, Path]


@dataclass(frozen=True, eq=False)
class FittedTables:
    """What was learnt through noise: the model of patients and visits, and one for each event table.

    Attributes
    ----------
    beside : mapping of event table to {other table: starts of the public bins of its number of rows}
    """

    main: NoisyModel
    events: dict[str, NoisyModel]
    beside: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)

    def sample(self, patients: int | None, rng: np.random.Generator) -> tuple[Panel, dict[str, Panel]]:
        """Draw linked synthetic panels."""
        panel = self.main.sample(patients, rng=rng)
        linked: dict[str, Panel] = {}
        for name, model in self.events.items():
            beside = self.beside.get(name, {})
            given = [column.name for column in model.domain.static]
            known = linked_patients(panel, given[: len(given) - len(beside)])
            others = {"visits": panel.counts} | {other: events.counts for other, events in linked.items()}
            numbers = [bins_of(others[other], starts) for other, starts in beside.items()]
            linked[name] = events_for(np.column_stack([known, *numbers]), model, rng)
        return panel, linked


def load_synthesis(path: Path) -> tuple[SynthesisStudy, str]:
    """Read and check a synthesis study; returns it with its text.

    Raises
    ------
    InputError
        The file cannot be read or does not hold.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the study file: {error.strerror}", where=str(path)) from error
    return parse_synthesis_study(text, where=str(path)), text


def run_synthesis(
    path: Path,
    *,
    accept: Callable[[list[str]], None],
    ledger_url: str | None = None,
    output: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> SynthesisOutcome:
    """Run a synthesis study from data to a committed release.

    Parameters
    ----------
    path : Path
        The study file.
    accept : callable
        Takes lines about the price; raises to stop before anything is spent.
    ledger_url, output : optional
        Instead of what the study says.
    resume : bool
        Go on with the latest unfinished run of this study: its reservation and the answers it already paid for.
    progress : function, optional
        Called with (what was asked or is being done, share of the budget spent).

    Raises
    ------
    InputError
        The study or the data do not fit; nothing was spent.
    BudgetError
        The ledger admits nobody.
    """
    from confide.studies.synthesis_paid import Buyer
    from confide.studies.synthesis_write import write_tables

    study, text = load_synthesis(path)
    refuse_unconfirmed(
        text, where=str(path), otherwise=f"confide schema confirm {path}, or confide schema estimate {path}"
    )
    study.check_useful()
    base = path.parent
    check_ledger(study, base, ledger_url, resume=resume)
    plan, levels = plan_of(study)
    releases = output if output is not None else base / study.output.dir
    outside_releases(releases)
    internal = releases.parent / "internal"
    digest = hashlib.sha256(text.encode()).hexdigest()
    going_on = state.pick(internal, study.name) if resume else None
    if going_on is not None and going_on.study_sha256 != digest:
        raise InputError(
            "the study file changed since this run began",
            where=str(path),
            expected="the study as it was",
            remedy="put it back, or start a new run without --resume (what was reserved stays reserved)",
        )
    run = going_on or state.RunState(state.new_name(study.name), digest, secrets.token_hex(32))
    with (
        state.alone(internal, run),
        state.spool(internal, run) as spool,
        open_ledger(study, base, ledger_url) as ledger,
    ):
        if (done := already_written(releases, study.name, run.reservation, ledger)) is not None:
            return finish(study, done, ledger, internal, run)
        tell = progress or (lambda what, spent: None)
        # bad data are refused here, before anything is spent
        people = gather(
            study, base=base, spool=spool, progress=lambda what: tell(what, 0.0)
        )  # refuses bad data before anything is spent
        class_of = people.classes(list(levels))
        if run.reservation is not None:
            reservation = ledger.resume(run.reservation, people.members(ledger))
        else:
            accept(price_lines(study))
            state.save(internal, run)  # a run that is killed while it reserves finds its reservation by its key
            try:
                reservation = ledger.reserve(
                    release=study.name,
                    contributors=people.members(ledger),
                    class_of=class_of,
                    classes=[plan.guarantee(level) for level in plan.classes],
                    data_set=data_set_of(study),
                    exhausted=study.ledger.exhausted,
                    **flow_of(study),
                    idempotency_key=run.name,
                )
            except (BudgetError, InputError):
                # an earlier attempt may have been charged under this key: the run stays the way back to that charge
                if going_on is None:
                    state.forget(internal, run)
                raise
            run.reservation, run.stage = reservation.id, "reserved"
            state.save(internal, run)
        ledger.start(reservation.id)
        # the levels too: a patient whose consent rose in between would be used beyond what was charged
        journals = Journals(internal, run, f"{text}\n{people.digest(class_of)}")
        admitted = people.coded.subset(np.asarray(reservation.admitted, dtype=bool))
        fitted = fit_tables(study, admitted, levels, journals=journals, progress=progress)
        folder = write_tables(
            study,
            text,
            plan=plan,
            fitted=fitted,
            real=admitted,
            aside=people.aside,
            receipt=LedgerReference(ledger=ledger.id, reservation=reservation.id),
            releases=releases,
            spool=spool,
            key=run.key,
            buy=Buyer(study, people.held_out, ledger, run, lambda: state.save(internal, run)).figures,
            progress=lambda what: tell(what, 1.0),
        )
        return finish(study, Release.load(folder), ledger, internal, run)


def finish(
    study: SynthesisStudy, release: Release, ledger: Ledger, internal: Path, run: state.RunState
) -> SynthesisOutcome:
    """Commit a written release, unless that was done before the run was killed, and forget the run."""
    assert run.reservation is not None
    if ledger.reservation(run.reservation).state != "committed":
        ledger.commit(run.reservation, release_hash=release.digest)
    further = run.extra.get("further")
    if further is not None and ledger.reservation(further).state != "committed":
        ledger.commit(further, release_hash=release.digest)
    state.forget(internal, run)
    lines = (guarantee_sentence(release.certificate), estimand_line(study))
    return SynthesisOutcome(release, lines, paths_of(release.path))


def paths_of(folder: Path) -> dict[str, Path]:
    """Return what to open of a release."""
    return {"release": folder, "certificate": folder / "certificate.json", "report": folder / "report.html"}


def estimand_line(study: SynthesisStudy) -> str:
    """Say what the table is right for."""
    if study.method.name not in ("patient-unit", "independence"):
        return f"The method {study.method.name!r} counts patients, or their visits up to its cap or slots, the same."
    each = "every visit counts the same" if study.method.estimand == "visit" else "every patient counts the same"
    return f"The table answers questions per {study.method.estimand} ({each})."


def price_lines(study: SynthesisStudy) -> list[str]:
    """Say what the run costs and who takes no part, before anything is spent."""
    lines = [f"Price: epsilon {study.privacy.epsilon:g} at delta {study.delta:.3g} for each patient with all visits."]
    if study.evaluation.holdout:
        free = " and pay nothing" if study.evaluation.metrics == "internal" else ""
        lines.append(
            f"{100 * study.evaluation.holdout:g}% of the patients, by a public coin, take no part{free}: the "
            "result is measured on them."
        )
    if isinstance(paid := study.evaluation.metrics, PaidFigure):
        lines.append(
            f"They pay epsilon {paid.epsilon:g} at delta {study.delta:.3g} for how well a model trained on the "
            "synthetic table does on them; this figure is in the release."
        )
    if (later := study.evaluation.over_time) is not None:
        lines.append(f"Patients with {later.column} at or after {later.cut} take no part: prediction over time.")
    return lines


def plan_of(study: SynthesisStudy) -> tuple[TablePlan, dict[str, float]]:
    """Return the plan and the budget levels.

    Raises
    ------
    InputError
        A level is above the price of the study.
    """
    budget = study.privacy.budget
    levels = {"all": study.privacy.epsilon} if budget == "equal" else dict(budget.levels)
    if max(levels.values()) > study.privacy.epsilon:
        raise InputError(
            "a budget level is above [privacy] epsilon",
            where="[privacy] budget",
            expected=f"levels of at most {study.privacy.epsilon:g}",
        )
    entries = study.visits.max_visits if study.visits else 1
    guarantees = {
        e: Gaussian(noise_multiplier=1 / gaussian_mu(e, study.delta)).guarantee() for e in set(levels.values())
    }
    classes = tuple(Level(entries, e, entries) for e in levels.values())
    method = study.method.model_dump(exclude_none=True) | {
        "unit": "one patient with all visits, however many",
        "noise": "Gaussian, at most this much in total whatever was measured adaptively",
    }
    if study.events:
        method["budget shares"] = {"patients and visits": study.share} | {n: s.share for n, s in study.events.items()}
    return TablePlan(study.delta, method, classes, guarantees), levels


@dataclass(frozen=True)
class Journals:
    """Where the noisy answers of a run are kept, one file for each kind of table."""

    internal: Path
    run: state.RunState
    text: str

    def open(self, number: int, panel: Patients) -> FileJournal:
        """Open the journal of one kind of table.

        Raises
        ------
        RunError
            It was begun before and is gone: answers would be drawn, and paid for, twice.
        """
        path = state.run_folder(self.internal, self.run.name) / f"answers-{number}.jsonl"
        begun = self.run.extra.setdefault("journals", [])
        if number in begun and not path.exists():
            raise RunError(
                "the journal of this run is gone, and noisy answers had been drawn",
                where=str(path),
                expected="the journal, so that the run goes on with the noise it began with",
                remedy="put it back; without it only a new run can be made (this reservation stays counted)",
            )
        journal = FileJournal(path, text=self.text, panel=panel)
        if number not in begun:
            begun.append(number)
            state.save(self.internal, self.run)
        return journal


def fit_tables(
    study: SynthesisStudy,
    coded: Coded | StreamedCoded,
    levels: dict[str, float],
    *,
    journals: Journals | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> FittedTables:
    """Learn all tables under one budget; each event table has its declared share of it.

    Parameters
    ----------
    journals : optional
        Makes the run resumable.
    progress : function, optional
        Called with (what was asked, share of the whole budget spent).
    """
    scale = None
    if (level_of := coded.level_numbers(list(levels))) is not None:
        top = gaussian_mu(max(levels.values()), study.delta)
        part = np.array([gaussian_mu(e, study.delta) / top for e in levels.values()])
        scale = np.minimum(part, 1.0)[level_of]
    before = 0.0

    def meter_of(part: float, number: int, panel: Patients) -> Meter:
        journal = journals.open(number, panel) if journals is not None else None
        start = before

        def tell(name: str, spent: float) -> None:
            if progress is not None:
                progress(name, start + part * spent)

        return _meter(study, levels, part, number, journal=journal, progress=tell)

    # only methods that take either kind of panel are given tables on disk: `streams`
    main = study.synthesizer().fit(
        cast(Panel, coded.panel), meter_of(study.share, 0, coded.panel), scale=scale, rules=study.row_rules()
    )
    before += study.share
    events = {}
    for number, (name, section) in enumerate(study.events.items(), 1):
        meter = meter_of(section.share, number, coded.events[name])
        events[name] = study.synthesizer().fit(
            cast(Panel, coded.events[name]), meter, scale=scale, rules=study.row_rules(name)
        )
        before += section.share
    beside = {
        name: {other: study.row_bins(other) for other in section.beside} for name, section in study.events.items()
    }
    return FittedTables(main, events, beside)


def _meter(
    study: SynthesisStudy,
    levels: dict[str, float],
    part: float,
    stream: int,
    *,
    journal: FileJournal | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Meter:
    noise: Any = OSNoise() if study.privacy.noise == "os" else SecureNoise()
    if study.privacy.seed is not None:
        noise = SeededNoise(study.privacy.seed + stream)
    top = max(levels.values())
    smallest = min(gaussian_mu(e, study.delta) for e in levels.values()) / gaussian_mu(top, study.delta)
    return Meter(
        epsilon=top, delta=study.delta, noise=noise, smallest=smallest, part=part, journal=journal, progress=progress
    )


def generator_of(study: SynthesisStudy, stream: int, key: str) -> np.random.Generator:
    """Return the generator of draws from released figures (by the run's hexadecimal key); not a source of privacy.

    What is drawn is published, and this generator can be run backwards from enough of it. The same key makes the noise
    of paid figures, so the draws get a secret of their own, from which there is no way back to the key.
    """
    if study.privacy.seed is not None:
        return np.random.default_rng([study.privacy.seed, stream])
    message = b"confide/draws/1\x00" + stream.to_bytes(8, "big")
    secret = hmac.new(bytes.fromhex(key), message, hashlib.sha256).digest()
    seeds = np.random.SeedSequence(int.from_bytes(secret, "little"), pool_size=8)
    return np.random.Generator(np.random.SFC64(seeds))


def data_set_of(study: SynthesisStudy) -> str:
    """Name the tables for the ledger."""
    sections = [study.patients, study.visits, *study.events.values()]
    return " + ".join(dict.fromkeys(s.label for s in sections if s is not None))


def check_guarantee(plan: TablePlan, fitted: FittedTables) -> None:
    """Refuse to write a release whose noisy looks add up to more than was reserved.

    Raises
    ------
    RunError
        A method spent more than its meter: an error in the method, never written out as a release.
    """
    from confide.accounting import compose

    spent = compose([model.guarantee() for model in (fitted.main, *fitted.events.values())]).epsilon(plan.delta)
    most = max(plan.guarantee(level).epsilon(plan.delta) for level in plan.classes)
    if spent > most * (1 + 1e-6) + 1e-9:
        raise RunError(
            f"the method spent epsilon {spent:.4f}, more than the {most:.4f} that was reserved",
            expected="noisy looks within the reserved budget",
            remedy="report this: nothing was released; the reservation stays counted",
        )
