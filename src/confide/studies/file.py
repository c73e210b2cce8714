"""The study file: one declared, repeatable experiment in TOML, every public fact in it and nothing else.

>>> study = load_study("examples/pbcseq.toml")          # doctest: +SKIP
>>> study.privacy.epsilon                               # doctest: +SKIP
4.0

What a study file says may be printed whole and travels with the release: it holds the declared columns, the public
constants and the plan, never a value taken from the data. Unknown keys are errors that name the nearest key.
"""

from __future__ import annotations

import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from confide.data import ColumnSpec, SourceSpec
from confide.errors import InputError, nearest
from confide.ledger.section import LedgerSection, LinkageSection
from confide.planning import Search, resolve_strategy
from confide.studies.evaluation_section import EvaluationSection, Paid
from confide.studies.section import Section as _Section
from confide.studies.targets import check_target
from confide.studies.training_section import Quantile, TrainingSection

#: What ``[optimizer]`` knows by name; `confide.training`, which loads torch, has them.
OPTIMIZERS = (
    *("sgd", "adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop", "rprop", "asgd"),
    *("dp-adam", "sgld"),
)


def _in_words(error: InputError) -> str:
    parts = [error.what, error.expected and f"expected {error.expected}", error.remedy]
    return "; ".join(part for part in parts if part)


def _named(value: str, known: tuple[str, ...], what: str) -> str:
    if value in known:
        return value
    close = nearest(value, known)
    raise ValueError(
        f"unknown {what} {value!r}; expected {', '.join(known)}" + (f"; did you mean {close!r}?" if close else "")
    )


@cache
def model_names() -> tuple[str, ...]:
    """Return what ``[model]`` knows by name, read from the sources of `confide.nn`: importing it would load torch."""
    found: list[str] = []
    for source in sorted((Path(__file__).parent.parent / "nn").rglob("*.py")):
        found += re.findall(r"^@register\(\"([a-z0-9-]+)\"", source.read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(found)


def _model_name(value: str) -> str:
    known = model_names()
    # names that a program registered itself; without torch loaded nobody can have
    registry = sys.modules.get("confide.nn.registry")
    own = registry.names() if registry is not None else ()
    # an installation without sources (compiled only) finds a wrong name when the model is built
    return value if ":" in value or value in own or not known else _named(value, known, "model")


ModelName = Annotated[str, AfterValidator(_model_name)]
OptimizerName = Annotated[
    str, AfterValidator(lambda value: value if ":" in value else _named(value, OPTIMIZERS, "optimizer"))
]


class PublicSection(_Section):
    """``[public]``: what is declared to be public knowledge."""

    entry_counts: str | dict[int, int] | Paid | Literal["preview"] | None = None
    max_entries: int | None = Field(default=None, ge=1)
    max_contributors: int | None = Field(default=None, ge=1)

    @field_validator("entry_counts", mode="before")
    @classmethod
    def _paid_or_table(cls, value: Any) -> Any:
        if isinstance(value, dict) and "epsilon" in value:
            return Paid.model_validate(value)
        if isinstance(value, dict):
            return {int(k): int(n) for k, n in value.items()}
        return value


class BudgetColumn(_Section):
    """``budget = {column = "consent", levels = {basic = 1, full = 4}}``: levels are public, who chose which is not."""

    column: str
    levels: dict[str, float]

    @field_validator("levels", mode="before")
    @classmethod
    def _levels(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {str(v): float(v) for v in value}
        return value


class BudgetRule(_Section):
    """``budget = {rule = "4 if k <= 10 else 2"}``: a public rule of a contributor's own number of entries k."""

    rule: str


class PrivacySection(_Section):
    """``[privacy]``: the price of this release."""

    epsilon: float = Field(gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    strategy: str = "individual"
    noise_multiplier: float = Field(gt=0)
    steps: int = Field(ge=1)
    clip_norm: float = Field(default=1.0, gt=0)
    budget: Literal["equal"] | BudgetColumn | BudgetRule = "equal"
    denominator: float | None = Field(default=None, gt=0)
    noise: Literal["os", "secure"] = "os"
    seed: int | None = None
    on_nonfinite: Literal["zero", "stop"] = "zero"
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | Quantile | None = None
    correlation: str | None = None

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, value: str) -> str:
        try:
            resolve_strategy(value, median=1)
        except InputError as error:
            raise ValueError(_in_words(error)) from error
        return value


class ModelSection(_Section):
    """``[model]``: a registered name or ``module:Class``; its initial weights are public."""

    name: ModelName = "logistic"
    options: dict[str, Any] = Field(default_factory=dict)


class OptimizerSection(_Section):
    """``[optimizer]``: any optimiser that runs on the noisy gradient."""

    name: OptimizerName = "sgd"
    lr: float = Field(default=0.1, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


class OptimizerOverride(_Section):
    """What a candidate changes in ``[optimizer]``."""

    name: OptimizerName | None = None
    lr: float | None = Field(default=None, gt=0)
    options: dict[str, Any] | None = None


class ModelOverride(_Section):
    """What a candidate changes in ``[model]``."""

    name: ModelName | None = None
    options: dict[str, Any] | None = None


class PrivacyOverride(_Section):
    """What a candidate changes in ``[privacy]``: the clip norm, as noise scales with it. Nothing else is free."""

    clip_norm: float = Field(gt=0)


class Candidate(_Section):
    """One setting of public training hyper-parameters; what it leaves out stays as the study says."""

    optimizer: OptimizerOverride = OptimizerOverride()
    model: ModelOverride = ModelOverride()
    privacy: PrivacyOverride | None = None


class SearchSection(_Section):
    """``[search]``: try candidates privately and show only the best; the plan pays for it."""

    law: str = "negative-binomial"
    mean_runs: float | None = Field(default=None, gt=0)
    shape: float = Field(default=0.0, gt=-1)
    success: float | None = Field(default=None, gt=0, lt=1)
    score: Literal["brier", "accuracy"] = "brier"
    score_noise_multiplier: float = Field(default=10.0, gt=0)
    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _law_fits(self) -> SearchSection:
        try:
            self.terms()
        except InputError as error:
            raise ValueError(_in_words(error)) from error
        return self

    def terms(self) -> Search:
        """The search as the planner prices it."""
        return Search(
            self.law,
            mean_runs=self.mean_runs,
            shape=self.shape,
            success=self.success,
            score_noise_multiplier=self.score_noise_multiplier,
        )


class OutputSection(_Section):
    """``[output]``: the folder of releases; ``internal`` is made beside it."""

    dir: str = "releases"


class EngineSection(_Section):
    """``[engine]``: what changes only speed and rounding and never a claim; the certificate states the precision."""

    device: str = "auto"
    engine: Literal["auto", "exact", "fast"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    physical_batch: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)
    shards: bool = False


class Study(_Section):
    """One declared, repeatable experiment: data + plan + model + evaluation."""

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    data: tuple[SourceSpec, ...] = Field(min_length=1)
    columns: dict[str, ColumnSpec] = Field(min_length=1)
    public: PublicSection = PublicSection()
    privacy: PrivacySection
    model: ModelSection = ModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    search: SearchSection | None = None
    evaluation: EvaluationSection = EvaluationSection()
    ledger: LedgerSection = LedgerSection()
    linkage: LinkageSection = LinkageSection()
    output: OutputSection = OutputSection()
    engine: EngineSection = EngineSection()

    @model_validator(mode="after")
    def _bounds_that_delta_needs(self) -> Study:
        if self.privacy.delta is None and self.public.max_contributors is None:
            raise ValueError(
                "privacy.delta is missing and there is no public bound to derive it from: give [privacy] delta, or "
                "[public] max_contributors (delta then defaults to 0.1 / max_contributors)"
            )
        if self.public.max_entries is None and not isinstance(self.public.entry_counts, str | dict):
            raise ValueError(
                "[public] max_entries is missing: the plan needs a public bound on the entries of one contributor "
                "(above it a uniform random subset is used, and that is stated)"
            )
        chosen = self.training
        if self.search is not None and (chosen.temperature or chosen.kept or chosen.voters):
            raise ValueError("[training] snapshots, ensemble and temperature are of one run, not of a [search]")
        if self.search is not None and self.training.neuraldp is not None:
            raise ValueError("[training] neuraldp has a price of its own in every run: it does not go with [search]")
        self._what_shards_take()
        check_target(self)
        self._within_levels()
        self.evaluation.check_subgroups(self.columns)
        return self

    def _what_shards_take(self) -> None:
        """Refuse here what a run in shards would refuse once the price is accepted."""
        methods = ("recipe", "averaging", "sharpness", "snapshots", "ensemble", "neuraldp")
        left = [f"[training] {name}" for name in methods if getattr(self.training, name) is not None]
        left += ["[privacy] correlation"] if self.privacy.correlation is not None else []
        left += ['[privacy] noise = "secure"'] if self.privacy.noise == "secure" else []
        if self.engine.shards and left:
            raise ValueError(f"[engine] shards = true does not go with {', '.join(left)}: leave one of the two away")

    def _within_levels(self) -> None:
        """What is bought is charged to all alike, whatever level they chose: nobody pays more than they agreed to."""
        budget = self.privacy.budget
        if not isinstance(budget, BudgetColumn):
            return
        if isinstance(self.public.entry_counts, Paid):
            raise ValueError(
                "a noisy histogram of entry counts is charged to everybody beside the level that they agreed to: with "
                "consent levels, declare public entry_counts or none"
            )
        least = min(budget.levels.values())
        paid = {"[evaluation] metrics": self.evaluation.metrics, "[training] temperature": self.training.temperature}
        for name, one in paid.items():
            if one is None or isinstance(one, str) or one.epsilon <= least:
                continue
            raise ValueError(
                f"{name} costs people set aside epsilon {one.epsilon:g}, and some agreed to {least:g}: buy it for "
                f"{least:g} or less, or leave it out"
            )

    @property
    def delta(self) -> float:
        """The delta of the claim: declared, or 0.1 / the public bound on contributors."""
        if self.privacy.delta is not None:
            return self.privacy.delta
        assert self.public.max_contributors is not None
        return 0.1 / self.public.max_contributors

    @property
    def unit(self) -> str:
        """``"contributor"``, or ``"entry"`` where the data carry no person ids."""
        return "entry" if any(source.contributor == "row" for source in self.data) else "contributor"


def load_study(path: str | Path) -> Study:
    """Read and check a study file.

    Parameters
    ----------
    path : str or Path
        A TOML file.

    Returns
    -------
    Study

    Raises
    ------
    InputError
        With the file, the line, what was expected and the nearest known key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read the study file: {error.strerror}",
            where=str(path),
            expected="a TOML file; `confide init TABLE --contributor COL --label COL` writes a first one",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("the study file is not UTF-8 text", where=str(path)) from error
    return parse_study(text, where=str(path))


def parse_study(text: str, *, where: str = "study.toml") -> Study:
    """Check the text of a study file; errors as in `load_study`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"the study file is not valid TOML: {error}", where=where, expected="TOML 1.0 (strings in quotes)"
        ) from error
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, text, where) from error


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys that may stand where a wrong one was found."""
    model: Any = Study
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            # inside a table of named things (columns.<name>) or a union member: stay at the last model known
            continue
        inner = field.annotation
        while hasattr(inner, "__args__"):
            models = [a for a in inner.__args__ if hasattr(a, "model_fields") or hasattr(a, "__args__")]
            if not models:
                break
            inner = models[-1]
        if hasattr(inner, "model_fields"):
            model = inner
    return list(model.model_fields)


def _line_of(text: str, location: tuple[int | str, ...]) -> int | None:
    """Line (from 1) of the key that an error is about: the last key of the path, under its table's header."""
    keys = [str(part) for part in location if isinstance(part, str)]
    numbers = [part for part in location if isinstance(part, int)]
    lines = text.splitlines()
    for drop in range(len(keys)):
        wanted, tables = keys[len(keys) - 1 - drop], keys[: len(keys) - 1 - drop]
        header, seen = "", 0
        for number, line in enumerate(lines, 1):
            match = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
            if match:
                header = match.group(1).replace('"', "").replace(" ", "")
                seen += int(bool(tables) and header == tables[0] and line.lstrip().startswith("[["))
                if header == ".".join([*tables, wanted]):
                    return number
                continue
            right_copy = not numbers or not seen or seen == numbers[0] + 1
            inside = header == ".".join(tables)
            if inside and right_copy and re.match(rf"\s*[\"']?{re.escape(wanted)}[\"']?\s*(=|\.)", line):
                return number
    return None


def _explain(error: ValidationError, text: str, where: str) -> InputError:
    """Turn pydantic's first complaint into what, where, expected, remedy."""
    # a misspelt key also makes the right one missing: the misspelling is the cause
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = tuple(problem["loc"])
    # a union member's class name in the path is pydantic's word, not the user's
    shown = tuple(
        p for p in location if not (isinstance(p, str) and re.match(r"^([A-Z]\w+|literal\[.*|str|dict\[.*)$", p))
    )
    dotted = ".".join(str(p) for p in shown) or "the file"
    line = _line_of(text, shown)
    place = f"{where}, line {line}" if line else where
    more = len({tuple(e["loc"]) for e in problems}) - 1
    also = (
        f" ({more} further problem{'s' if more > 1 else ''} in this file)"
        if more > 0 and problem["type"] != "union"
        else ""
    )
    if problem["type"] == "extra_forbidden":
        key = str(shown[-1])
        known = _known_keys(shown[:-1])
        close = nearest(key, known)
        table = "[" + ".".join(map(str, shown[:-1])) + "]" if shown[:-1] else "the study file"
        return InputError(
            f"unknown key {key!r} in {table}{also}",
            where=place,
            expected="one of " + ", ".join(known),
            remedy=f"did you mean {close!r}?" if close else "remove it, or see the study file page of the docs",
        )
    if problem["type"] == "missing":
        return InputError(
            f"{dotted} is missing{also}",
            where=place,
            expected=f"a value for {shown[-1]!r}",
            remedy="add it to the study file",
        )
    message = problem["msg"].removeprefix("Value error, ")
    return InputError(f"{dotted}: {message}{also}", where=place, expected=_expected(problem))


def _expected(problem: Any) -> str | None:
    context = problem.get("ctx") or {}
    if "expected" in context:
        return str(context["expected"])
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if name in context:
            return f"a value {sign} {context[name]}"
    return None
