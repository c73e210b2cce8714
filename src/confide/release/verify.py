"""`verify`: does a release hold what its certificate says? Every figure is computed again, every file is hashed.

The claims are checked against what the mechanisms in the certificate cost, and the mechanisms against the plan: a
smaller noise in one place and not in the other is found. What no check of a folder can show is that the run really
added that noise; that is what the audit is for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from confide._files import sha256_of
from confide.accounting import Correlation, success_for
from confide.errors import ConfideError, VerificationError
from confide.release import crosscheck
from confide.release.build import facts_of
from confide.release.certificate import Certificate, ClassGuarantee, Facts, Part
from confide.release.folder import CERTIFICATE_FILE, Release
from confide.release.linking import wrong_links_of
from confide.release.rebuild import guarantee_of
from confide.release.schema import shipped_schema

# The same code gives the same figure to the last bits; another version may choose another grid within its interval.
_SAME = 2e-3
_SECOND_OPINIONS = 4
_ATTACK_FIGURES = ("membership_advantage", "tpr_at_fpr_1pct", "posterior_prior_1pct_fpr_1pct")


class LedgerReceipt(Protocol):
    """What a ledger gives back for a committed reservation."""

    @property
    def release_hash(self) -> str:
        """SHA-256 of certificate.json, handed over at commit."""
        ...


class LedgerView(Protocol):
    """What `verify` needs of a ledger; `confide.ledger.Ledger` has it."""

    @property
    def id(self) -> str:
        """Public name of the ledger."""
        ...

    def receipt(self, reservation_id: str, /) -> LedgerReceipt:
        """Return the receipt of a committed reservation; raise a ConfideError if it is unknown or not committed."""
        ...


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `asked` is False where nothing could be compared, which proves nothing."""

    what: str
    ok: bool
    detail: str
    asked: bool = True


@dataclass(frozen=True)
class VerifyReport:
    """All checks of one release, and the classes on which dp_accounting was asked (by entries and budget)."""

    path: Path
    checks: tuple[Check, ...]
    second_opinions: tuple[tuple[int, float | None], ...] = ()

    @property
    def ok(self) -> bool:
        """True if nothing differs."""
        return all(check.ok for check in self.checks)

    @property
    def differences(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.ok)


def verify(
    path: str | Path, *, ledger: LedgerView | None = None, second_opinions: int = _SECOND_OPINIONS
) -> VerifyReport:
    """Check a release folder.

    Parameters
    ----------
    path : path
        The folder.
    ledger : LedgerView, optional
        Where the release was recorded; without it the ledger entry is not checked, and the report says so.
    second_opinions : int
        How many classes dp_accounting is asked about where it is installed (each takes seconds): the extremes first.

    Returns
    -------
    VerifyReport
        With every check, all of them passed.

    Raises
    ------
    InputError
        If there is no release at `path`.
    VerificationError
        On any difference (exit code 4); its `report` attribute holds the VerifyReport.
    """
    release = Release.load(path)
    c = release.certificate
    asked = _sample(c.classes, second_opinions) if crosscheck.available() else []
    checks = (
        *_form(release),
        *_files(release),
        *_plan(c),
        *_figures(c),
        *_linkage(c),
        *_second(c, asked),
        *_ledger(release, ledger),
    )
    report = VerifyReport(release.path, checks, tuple((one.entries, one.budget) for one in asked))
    if not report.ok:
        lines = [f"{check.what}: {check.detail}" for check in report.differences]
        shown = lines if len(lines) <= 12 else [*lines[:12], f"and {len(lines) - 12} more"]
        error = VerificationError(
            "the release is not what its certificate says:\n    " + "\n    ".join(shown),
            where=str(release.path),
            expected="every figure recomputed and every file unchanged",
            remedy="do not rely on this folder; fetch it again from whoever published it",
        )
        error.report = report  # type: ignore[attr-defined]
        raise error
    return report


def _form(release: Release) -> Iterator[Check]:
    detail, ok = "has the published form", True
    try:
        import jsonschema
    except ImportError:
        detail += " (checked by type; install 'confide[verify]' to check it against the schema file as well)"
    else:
        document = json.loads((release.path / CERTIFICATE_FILE).read_bytes())
        problem = next(iter(jsonschema.Draft202012Validator(shipped_schema()).iter_errors(document)), None)
        if problem is not None:
            ok, detail = False, f"{problem.json_path}: {problem.message[:200]}"
    yield Check("certificate", ok, detail)


def _files(release: Release) -> Iterator[Check]:
    named = dict(release.certificate.artefacts)
    present = {entry.name: entry for entry in release.path.iterdir()}
    for name, digest in sorted(named.items()):
        entry = present.get(name)
        if entry is None or entry.is_symlink() or not entry.is_file():
            yield Check(name, False, "is missing")
        elif (found := sha256_of(entry)) != digest:
            yield Check(name, False, f"was changed: SHA-256 {found[:16]}..., the certificate says {digest[:16]}...")
        else:
            yield Check(name, True, f"SHA-256 {digest[:16]}... as stated")
    for name in sorted(set(present) - set(named) - {CERTIFICATE_FILE}):
        yield Check(name, False, "is not named in the certificate")


def _plan(c: Certificate) -> Iterator[Check]:
    if c.plan_fingerprint is not None:
        text = json.dumps(c.plan, sort_keys=True, separators=(",", ":"))
        same = hashlib.sha256(text.encode()).hexdigest() == c.plan_fingerprint
        yield Check("plan", same, "has its fingerprint" if same else "does not have the fingerprint that is stated")
    relations = {p.mechanism.get("relation", c.relation) for one in c.classes for p in one.parts}
    same = relations == {c.relation}
    yield Check("relation", same, f"{c.relation} throughout" if same else f"classes mix {', '.join(sorted(relations))}")
    yield from _options(c)
    rows = c.plan.get("classes")
    if not isinstance(rows, Sequence) or "noise_multiplier" not in c.plan:
        return  # a release without a training plan: its mechanisms stand for themselves
    stated = {(row.get("entries"), row.get("budget")): row for row in rows}
    for one in c.classes:
        row = stated.get((one.entries, one.budget))
        problem = "is not in the plan" if row is None else _class_differs(c, one, row)
        yield Check(f"plan, class {_label(one)}", problem is None, problem or "follows from the plan")
    missing = len(stated.keys() - {(one.entries, one.budget) for one in c.classes})
    if missing:
        yield Check("plan", False, f"{missing} of its classes are missing in the certificate")


def _options(c: Certificate) -> Iterator[Check]:
    """Recompute what correlated noise and a paid clipping norm rest on."""
    if (split := c.plan.get("clipping")) is not None:
        try:
            bound = max(split["quantile"], 1 - split["quantile"])
            share = float(split["gradient_noise"]) ** -2 + (bound / float(split["count_noise"])) ** 2
            same = share <= (1 + 1e-9) / float(c.plan["noise_multiplier"]) ** 2
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            same = False
        detail = "sum and count together have the plan's noise" if same else "sum and count have less noise than stated"
        yield Check("plan, clipping norm", same, detail)
    if c.plan.get("correlation") is not None:
        problem = None
        try:
            factor = Correlation.from_dict(c.plan["correlation"])
            steps = int(c.plan["steps"])
            if not factor.check(steps):
                problem = f"its factor lets a person change the run by {factor.sensitivity(steps):.6g}"
            elif not factor.amplifies and any(row.get("rate") != 1 for row in c.plan.get("classes", ())):
                problem = f"{factor.kind} noise does not count on secret sampling"
        except (ConfideError, KeyError, TypeError, ValueError) as error:
            problem = error.what if isinstance(error, ConfideError) else f"cannot be read: {error}"
        detail = problem or f"a person can change the run by at most sqrt({_rounds(c)}) of one participation"
        yield Check("plan, correlated noise", problem is None, detail)


def _rounds(c: Certificate) -> Any:
    """Return how often a contributor takes part at most: every step, or with correlated noise their group's."""
    steps, factor = c.plan.get("steps"), c.plan.get("correlation")
    if factor is None or not isinstance(steps, int):
        return steps
    try:
        return Correlation.from_dict(factor).rounds(steps)
    except ConfideError:
        return steps


def _class_differs(c: Certificate, one: ClassGuarantee, row: dict[str, Any]) -> str | None:
    """Compare a class with the plan: its own row, and the mechanism that the plan's constants imply."""
    for key in ("rate", "clip_norm", "entries_used"):
        if row.get(key) != getattr(one, key):
            return f"{key} is {getattr(one, key)}, the plan says {row.get(key)}"
    parts, problem = _runs(c, one)
    if problem is not None:
        return problem
    sampled = [p for p in parts if p.mechanism.get("mechanism") == "sampled-gaussian"]
    rounds = _rounds(c)
    trained = [p for p in sampled if p.steps == rounds]
    if not trained:
        return f"no part has the plan's {rounds} steps"
    entries = 1 if c.plan.get("clip_unit") == "contributor" else one.entries_used
    wanted = {
        "noise_multiplier": c.plan["noise_multiplier"],
        "rate": one.rate,
        "clip_norm": one.clip_norm,
        "entries": entries,
    }
    for part in trained:
        if all(part.mechanism.get(key, 1) == value for key, value in wanted.items()):
            return None
    first = trained[0].mechanism
    differing = [f"{k} {first.get(k, 1)} instead of {v}" for k, v in wanted.items() if first.get(k, 1) != v]
    return "its mechanism does not follow from the plan: " + ", ".join(differing)


def _runs(c: Certificate, one: ClassGuarantee) -> tuple[Sequence[Part], str | None]:
    """Return the parts of one training run, and how the search around it differs from the plan's, if it does."""
    searches = [p for p in one.parts if p.mechanism.get("mechanism") == "private-selection"]
    terms = c.plan.get("search")
    if terms is None:
        return one.parts, "a search that the plan does not name" if searches else None
    if len(searches) != 1 or searches[0].steps != 1:
        return one.parts, "the plan names one search, the guarantee does not hold exactly one"
    stated = searches[0].mechanism
    parts = [
        Part(mechanism={k: v for k, v in part.items() if k != "steps"}, steps=part.get("steps", 1))
        for part in stated.get("base", {}).get("parts", [])
    ]
    if stated.get("law") != terms.get("law"):
        return parts, f"the number of runs follows {stated.get('law')!r}, the plan says {terms.get('law')!r}"
    if terms["law"] == "poisson":
        same = stated.get("mean") == terms.get("mean_runs")
    else:
        gamma = terms.get("success") or success_for(terms["shape"], terms["mean_runs"])
        same = stated.get("shape") == terms.get("shape") and _close(stated.get("success", 0.0), gamma)
    if not same:
        return parts, "the law of the number of runs is not the plan's"
    noise = terms.get("score_noise_multiplier")
    if not any(
        p.mechanism.get("mechanism") == "gaussian" and p.mechanism.get("noise_multiplier") == noise for p in parts
    ):
        return parts, f"no score with the plan's noise multiplier {noise}"
    return parts, None


def _figures(c: Certificate) -> Iterator[Check]:
    cache: dict[str, dict[str, Any] | str] = {}
    for label, facts in _stated(c):
        asked = [facts.replace_one_epsilon is not None, *((p.mechanism, p.steps) for p in facts.parts)]
        key = json.dumps(asked, sort_keys=True)
        if key not in cache:
            try:
                cache[key] = facts_of(
                    guarantee_of(facts),
                    delta=facts.delta,
                    attacks=isinstance(facts, ClassGuarantee),
                    exchange=facts.replace_one_epsilon is not None,
                )
            except ConfideError as error:
                cache[key] = error.what
        found = cache[key]
        problem = found if isinstance(found, str) else _figure_differs(facts, found)
        yield Check(f"guarantee, {label}", problem is None, problem or f"epsilon {facts.epsilon:.6g} recomputed")


def _figure_differs(facts: Facts, found: dict[str, Any]) -> str | None:
    if facts.epsilon < found["epsilon_lower"] or not _close(facts.epsilon, found["epsilon"]):
        return f"epsilon is stated as {facts.epsilon:.6g}, recomputed as {found['epsilon']:.6g}"
    if facts.epsilon_lower > found["epsilon"] * (1 + _SAME):
        return f"epsilon_lower is stated as {facts.epsilon_lower:.6g}, epsilon is at most {found['epsilon']:.6g}"
    for name in ("mu", "replace_one_epsilon", *_ATTACK_FIGURES):
        stated, again = getattr(facts, name), found.get(name)
        if stated is not None and again is not None and not _close(stated, again):
            return f"{name} is stated as {stated:.6g}, recomputed as {again:.6g}"
        if name == "mu" and stated is not None and again is None:
            return f"mu is stated as {stated:.6g}, but the mechanism is not exactly Gaussian"
        if name == "replace_one_epsilon" and stated is not None and again is None:
            return f"{name} is stated as {stated:.6g}, but the accountant has no figure for this mechanism"
    return None


def _linkage(c: Certificate) -> Iterator[Check]:
    """Work out again what wrong links cost."""
    for row in c.linkage.wrong_links if c.linkage is not None else ():
        clip_unit = str(c.plan.get("clip_unit", "contributor"))
        try:
            found = [
                wrong_links_of(one, c.classes, clip_unit=clip_unit, delta=c.delta)
                for one in c.classes
                if one.entries == row.entries
            ]
        except ConfideError:
            found = []
        same = any(
            _close(row.epsilon, again.epsilon)
            and _close(row.split_in_2, again.split_in_2)
            and _close(row.split_in_3, again.split_in_3)
            and (row.merged is None) == (again.merged is None)
            and (row.merged is None or again.merged is None or _close(row.merged, again.merged))
            for again in found
        )
        detail = "recomputed for people split or merged" if same else "are not what the class gives when computed again"
        yield Check(f"wrong links, k={row.entries}", same, detail)


def _second(c: Certificate, asked: Sequence[ClassGuarantee]) -> Iterator[Check]:
    if not crosscheck.available():
        yield Check("dp_accounting", True, "not installed: no second opinion (extra 'verify')", asked=False)
        return
    for one in asked:
        what = f"dp_accounting, class {_label(one)}"
        try:
            opinion = crosscheck.second_opinion(guarantee_of(one), c.delta, claimed=one.epsilon)
        except ConfideError as error:
            yield Check(what, False, error.what)
            continue
        if opinion is None:
            yield Check(what, True, "has no counterpart there", asked=False)
            continue
        # Its figure is an upper bound, so ours may lie below it by its grid error, but never above by much.
        close = abs(opinion.epsilon - one.epsilon) <= crosscheck.TOLERANCE * max(opinion.epsilon, 1e-3)
        verdict = "agrees within" if close else "differs by more than"
        yield Check(
            what,
            close,
            f"{verdict} {crosscheck.TOLERANCE:.0%}: stated {one.epsilon:.6g}, there {opinion.epsilon:.6g} "
            f"(its own upper bound on grid {opinion.grid:g})",
        )


def _ledger(release: Release, ledger: LedgerView | None) -> Iterator[Check]:
    receipt = release.certificate.ledger
    if receipt is None:
        yield Check("ledger", True, "the certificate says that no ledger recorded this release", asked=False)
    elif ledger is None:
        yield Check("ledger", True, f"no ledger was given; the release names {receipt.ledger}", asked=False)
    elif ledger.id != receipt.ledger:
        yield Check("ledger", False, f"this is ledger {ledger.id}, the release was recorded in {receipt.ledger}")
    else:
        try:
            recorded = ledger.receipt(receipt.reservation).release_hash
        except ConfideError as error:
            yield Check("ledger", False, f"entry {receipt.reservation}: {error.what}")
            return
        same = recorded == release.digest
        detail = f"recorded this certificate as {receipt.reservation}" if same else "recorded another certificate"
        yield Check("ledger", same, detail)
        yield from _flow(release.certificate, ledger)


def _flow(c: Certificate, ledger: LedgerView) -> Iterator[Check]:
    """Compare who receives the release with the ledger's register."""
    look_up = getattr(ledger, "reservation", None)
    if look_up is None or c.ledger is None:
        return
    found = look_up(c.ledger.reservation)
    if c.flow is None:  # certificates did not always say it; the ledger holds the hash of this one as it is
        yield Check("recipient and purpose", True, "the certificate names none", asked=False)
        return
    stated = (c.flow.recipient, c.flow.purpose)
    same = (found.recipient or "", found.purpose or "") == stated
    detail = "as the register of flows has them" if same else "are not those that the ledger reserved for"
    yield Check("recipient and purpose", same, detail)


def _stated(c: Certificate) -> Iterator[tuple[str, Facts]]:
    for one in c.classes:
        yield f"class {_label(one)}", one
    for metric in c.evaluation:
        yield f"paid metric {metric.metric}", metric


def _sample(classes: Sequence[ClassGuarantee], wanted: int) -> list[ClassGuarantee]:
    """Choose classes to ask about: largest and smallest epsilon, fewest and most entries, then evenly between."""
    finite = [one for one in classes if math.isfinite(one.epsilon) and one.epsilon > 0]
    if not finite or wanted < 1:
        return []
    order = sorted(finite, key=lambda one: one.entries)
    first = [max(finite, key=lambda one: one.epsilon), order[0], order[-1], min(finite, key=lambda one: one.epsilon)]
    between = [order[round(i * (len(order) - 1) / (wanted + 1))] for i in range(1, wanted + 1)]
    chosen: dict[tuple[Any, ...], ClassGuarantee] = {}
    for one in (*first, *between):
        # classes with the same mechanism (everybody above the largest k) would only be asked the same question twice
        key = tuple((json.dumps(p.mechanism, sort_keys=True), p.steps) for p in one.parts)
        if len(chosen) < wanted:
            chosen.setdefault(key, one)
    return sorted(chosen.values(), key=lambda one: one.entries)


def _label(one: ClassGuarantee) -> str:
    return f"k={one.entries}" + (f" budget {one.budget:g}" if one.budget is not None else "")


def _close(stated: float, again: float) -> bool:
    if math.isinf(stated) or math.isinf(again):
        return stated == again
    return abs(stated - again) <= _SAME * max(abs(again), 1e-6)
