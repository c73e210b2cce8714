"""``confide synthesize`` and ``confide schema draft``: from declared tables to a release folder with synthetic ones."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confide.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from confide.accounting import Guarantee
    from confide.release import AssumedPublic
    from confide.synthesis import NoisyModel, Panel
    from confide.synthesis.coding import Coded
    from confide.synthesis.study import SynthesisStudy

schema_app = typer.Typer(name="schema", help="Declare the columns of tables to be synthesised.", no_args_is_help=True)


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


def synthesize(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The synthesis study.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending (for scripts).")] = False,
    ledger: Annotated[
        str | None, typer.Option("--ledger", help="Ledger URL; else the study's, else CONFIDE_LEDGER.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of releases instead of the study's.")] = None,
) -> None:
    """Reserve the price, learn the tables through noise, and write synthetic ones with certificate and report."""
    folder, lines = run_synthesize(study, yes=yes, ledger_url=ledger, output=output)
    for line in lines:
        typer.echo(line)
    typer.echo(f"\nrelease          {folder}")
    typer.echo(f"certificate      {folder / 'certificate.json'}")
    typer.echo(f"report           {folder / 'report.html'}")


def run_synthesize(path: Path, *, yes: bool, ledger_url: str | None, output: Path | None) -> tuple[Path, list[str]]:
    """Run a synthesis study; returns the release folder and what to tell the user.

    Raises
    ------
    InputError
        The study or the data do not fit; nothing was spent.
    BudgetError
        The ledger admits nobody.
    """
    import numpy as np

    from confide.release import LedgerReference, Release
    from confide.report import guarantee_sentence
    from confide.studies.run import open_ledger
    from confide.synthesis.coding import decode, read_coded
    from confide.synthesis.study import parse_synthesis_study

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the study file: {error.strerror}", where=str(path)) from error
    study = parse_synthesis_study(text, where=str(path))
    base = path.parent
    plan, levels = _plan(study)
    coded = read_coded(study, base=base)  # refuses bad data before anything is spent
    class_of = np.zeros(len(coded.ids), dtype=np.int64)
    if coded.levels is not None:
        class_of = np.array([list(levels).index(level) for level in coded.levels.tolist()], dtype=np.int64)
    with open_ledger(study, base, ledger_url) as ledger:
        _ask(study, plan, yes)
        reservation = ledger.reserve(
            release=study.name,
            contributors=coded.ids.tolist(),
            class_of=class_of,
            classes=[plan.guarantee(level) for level in plan.classes],
            data_set=_data_set(study),
            exhausted=study.ledger.exhausted,
        )
        ledger.start(reservation.id)
        admitted = coded.subset(np.asarray(reservation.admitted, dtype=bool))
        model = _fit(study, admitted, levels)
        panel = model.sample(study.sample.patients, rng=_generator(study))
        tables = decode(study, panel, _generator(study, 1))
        receipt = LedgerReference(ledger=ledger.id, reservation=reservation.id)
        releases = output if output is not None else base / study.output.dir
        folder = _write(study, text, plan, model, tables, panel, admitted, receipt, releases)
        release = Release.load(folder)
        ledger.commit(reservation.id, release_hash=release.digest)
    lines = [guarantee_sentence(release.certificate), _words(study)]
    return folder, lines


def _words(study: SynthesisStudy) -> str:
    each = "every visit counts the same" if study.method.estimand == "visit" else "every patient counts the same"
    return f"The table answers questions per {study.method.estimand} ({each})."


def _plan(study: SynthesisStudy) -> tuple[TablePlan, dict[str, float]]:
    from confide.accounting import Gaussian
    from confide.synthesis.meter import gaussian_mu

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
    return TablePlan(study.delta, method, classes, guarantees), levels


def _fit(study: SynthesisStudy, coded: Coded, levels: dict[str, float]) -> NoisyModel:
    import numpy as np

    from confide.mechanisms import OSNoise, SecureNoise, SeededNoise
    from confide.synthesis.meter import Meter, gaussian_mu

    noise = OSNoise() if study.privacy.noise == "os" else SecureNoise()
    top = max(levels.values())
    meter = Meter(
        epsilon=top,
        delta=study.delta,
        noise=noise if study.privacy.seed is None else SeededNoise(study.privacy.seed),
        smallest=min(gaussian_mu(e, study.delta) for e in levels.values()) / gaussian_mu(top, study.delta),
    )
    scale = None
    if coded.levels is not None:
        part = {name: gaussian_mu(e, study.delta) / gaussian_mu(top, study.delta) for name, e in levels.items()}
        scale = np.minimum(np.array([part[level] for level in coded.levels.tolist()]), 1.0)
    return study.synthesizer().fit(coded.panel, meter, scale=scale, rules=study.row_rules())


def _generator(study: SynthesisStudy, stream: int = 0) -> Any:
    import numpy as np

    return np.random.default_rng(None if study.privacy.seed is None else [study.privacy.seed, stream])


def _ask(study: SynthesisStudy, plan: TablePlan, yes: bool) -> None:
    typer.echo(f"Price: epsilon {study.privacy.epsilon:g} at delta {plan.delta:.3g} for each patient with all visits.")
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("the price has to be accepted, and there is nobody to ask", remedy="add --yes in scripts")
    if not typer.confirm("Reserve this in the ledger and look at the data?"):
        raise typer.Abort


def _data_set(study: SynthesisStudy) -> str:
    return " + ".join(s.label for s in (study.patients, study.visits) if s is not None)


def _write(
    study: SynthesisStudy,
    text: str,
    plan: TablePlan,
    model: NoisyModel,
    tables: dict[str, pl.DataFrame],
    panel: Panel,
    real: Coded,
    receipt: Any,
    releases: Path,
) -> Path:
    from dataclasses import replace

    from confide.release import certify, write_release
    from confide.report import release_report
    from confide.studies.write import not_covered, public_text

    plan = replace(plan, looks=tuple(f"{m.level}: {' x '.join(m.columns)}" for m in model.measurements))
    certificate = certify(
        plan,
        name=study.name,
        kind="table",
        assumed_public=_assumed(study),
        testing_only=study.privacy.seed is not None,
        precision="float64",
        ledger=receipt,
        not_covered=not_covered(study),
    )
    joined = (
        tables["visits"].join(tables["patients"], on="patient", how="left")
        if "visits" in tables
        else tables["patients"]
    )
    files: dict[str, Any] = {"table.parquet": _parquet(joined), "table.csv": joined.write_csv()}
    for name, table in tables.items():
        files[f"{name}.parquet"] = _parquet(table)
        files[f"{name}.csv"] = table.write_csv()
    files["marginals.json"] = json.dumps(_marginals(model), indent=1)
    files["study.toml"] = public_text(text)
    files["report.html"] = lambda complete: release_report(complete, public_text(text))
    try:
        figures = _figures(real, panel)
    except Exception as error:  # exact figures must never decide whether a release is made
        figures = {"internal": True, "note": f"the internal figures failed: {error!r}"}
    internal = {"figures.json": json.dumps(figures, indent=1), "study.toml": text}
    return write_release(releases, study.name, certificate, files, internal)


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def _marginals(model: NoisyModel) -> dict[str, Any]:
    """Every released table with its error bar: noise included, so shares may be negative."""
    return {
        "patients": model.patients,
        "note": "shares as measured with noise; standard_error is that of the privacy noise in every cell",
        "tables": [
            {
                "columns": list(m.columns),
                "level": m.level,
                "noisy": m.noisy.tolist(),
                "standard_error": m.deviation,
                "estimate": m.estimate.tolist(),
            }
            for m in model.measurements
        ],
    }


def _figures(real: Coded, synthetic: Panel) -> dict[str, Any]:
    """Compare with the real tables: internal."""
    from confide.evaluation import tables as score

    if not real.panel.domain.visit or not len(synthetic.visit) or not len(real.panel.visit):
        return {"internal": True, "note": "no visits to compare"}
    a, b = _flat(real.panel), _flat(synthetic)
    found: dict[str, Any] = {"internal": True}
    for ways in (1, 2):
        f = score.fidelity(a, b, ways=ways)
        found[f"tv{ways}"] = {"mean": f.mean, "worst": f.worst, "worst_columns": list(f.worst_columns)}
        found[f"tv{ways}_per_patient"] = score.fidelity(a, b, ways=ways, per_patient=True).mean
    moving = [column.name for column in real.panel.domain.visit]
    found["transitions"] = score.transition_distance(a, b, moving)
    found["visit_counts"] = score.visit_count_distance(a, b)
    return found


def _flat(panel: Panel) -> Any:
    from confide.evaluation.tables import CodedTable

    columns = {c.name: panel.static[panel.of_visit, i] for i, c in enumerate(panel.domain.static)}
    columns |= {c.name: panel.visit[:, i] for i, c in enumerate(panel.domain.visit)}
    cells = {c.name: c.cells for c in (*panel.domain.static, *panel.domain.visit)}
    return CodedTable(columns, cells, panel.of_visit)


def _assumed(study: SynthesisStudy) -> list[AssumedPublic]:
    from confide.release import AssumedPublic

    here = "declared in the study file"
    facts = []
    for section in (study.patients, study.visits):
        for name, column in (section.columns if section is not None else {}).items():
            value = column.model_dump(mode="json", exclude_defaults=True)
            facts.append(AssumedPublic(what=f"column {name}", value=value, source=here))
    if study.visits is not None:
        facts.append(AssumedPublic(what="max_visits", value=study.visits.max_visits, source=here))
        facts.append(AssumedPublic(what="min_visits", value=study.visits.min_visits, source=here))
    for name, declared in (
        ("upper bound on the number of patients (delta rests on it)", getattr(study.public, "max_contributors", None)),
        ("rows asked for", getattr(study, "target", None)),
    ):
        if declared is not None:
            facts.append(AssumedPublic(what=name, value=declared, source=here))
    facts += [AssumedPublic(what="rule", value=rule.text, source=here) for rule in study.row_rules()]
    return facts


@schema_app.command("draft")
def draft(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A CSV or Parquet file with one row a visit.")],
    contributor: Annotated[str, typer.Option("--contributor", help="Column of patient ids.")],
    time: Annotated[str | None, typer.Option("--time", help="Column that orders a patient's visits.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the study file.")] = Path(
        "synthesis.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a first synthesis study, and list every value that was taken from the data."""
    from confide._files import write_atomic
    from confide.synthesis.draft import draft_synthesis

    if output.exists() and not force:
        raise InputError(
            f"{output} exists already", remedy="choose another name with --output, or --force to replace it"
        )
    text, looked = draft_synthesis(table, contributor=contributor, time=time)
    write_atomic(output, text)
    typer.echo(f"Wrote {output}.\n")
    typer.echo(
        "This draft was made by LOOKING AT THE DATA. Each value below must be replaced or confirmed from public\n"
        "knowledge before anything is synthesised; what only the data tell is a leak that no guarantee covers:\n"
    )
    for line in looked:
        typer.echo(f"  [ ] {line}")
