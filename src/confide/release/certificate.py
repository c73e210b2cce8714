"""What a release says about itself: every public fact needed to recompute the guarantee, and nothing else.

A `Certificate` may be printed whole, mailed and filed. It holds no seed, no generator state, no count of people or
entries that was not declared public or paid for, and no un-noised figure. The constructor refuses the ones it can
recognise, so that a careless caller fails before anything is written.

References
----------
Desfontaines and Pejó, "SoK: Differential privacies", PoPETs 2020, for the words (unit, relation, adversary).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

SCHEMA_VERSION: Literal[1] = 1

TESTING_ONLY = "for testing only"
PREVIEW = "parameters chosen after looking at private counts"
PER_ENTRY = "per entry, not per person"
NOT_RECORDED = "not recorded"

Relation = Literal["add/remove", "zero-out", "replace-one"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
# JSON has no infinity, and a class without a finite guarantee must be able to say so.
Epsilon = Annotated[
    float,
    Field(ge=0.0),
    PlainSerializer(lambda value: "Infinity" if math.isinf(value) else value, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"const": "Infinity"}]}),
]

# Words that only ever name private state. Matched on whole keys, so that "seeded" or "key_facts" pass.
_PRIVATE_KEYS = re.compile(
    r"(^|_)(seed|seeds|rng|generator|random_state|rng_state|coin|coins|secret|secrets|private_key|secret_key|run_key|"
    r"salt|salts|nonce)($|_)|^key$|^state$|^generator_state$",
    re.IGNORECASE,
)


class Fact(BaseModel):
    """Base of everything in a certificate: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(Fact):
    """One mechanism and how often it was applied."""

    mechanism: dict[str, Any] = Field(description="the mechanism with every parameter, as confide.accounting writes it")
    steps: int = Field(ge=1, description="how many times it was applied to the same contributor")


class Facts(Fact):
    """What a guarantee says, read off the composed pair of privacy loss distributions (always the safe end)."""

    parts: tuple[Part, ...] = Field(
        description="the mechanisms that are composed; enough to recompute every figure here"
    )
    epsilon: Epsilon = Field(description="certified upper end of epsilon at `delta`")
    epsilon_lower: Epsilon = Field(description="certified lower end: the true epsilon lies between the two")
    delta: Probability
    mu: float | None = Field(default=None, ge=0, description="Gaussian differential privacy, only where it is exact")
    membership_advantage: Probability | None = Field(
        default=None, description="largest (true positive rate - false positive rate) of any membership attack"
    )
    tpr_at_fpr_1pct: Probability | None = Field(
        default=None, description="largest true positive rate of any membership attack at a false positive rate of 1%"
    )
    posterior_prior_1pct_fpr_1pct: Probability | None = Field(
        default=None,
        description="probability, at best, that a person named by an attack with 1% false positives took part, "
        "if 1% was the probability before",
    )
    replace_one_epsilon: Epsilon | None = Field(
        default=None,
        description="epsilon at `delta` when a person is exchanged for another one of the same class, not taken out "
        "(double mixture). Stated under zero-out for up to 20 classes, the extremes among them; left out elsewhere "
        "and where the accountant cannot give it for the mechanism",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Facts:
        if self.epsilon_lower > self.epsilon:
            raise ValueError(f"epsilon_lower {self.epsilon_lower} lies above epsilon {self.epsilon}")
        return self


class _WhichClass(Fact):
    """Public facts that say who is in a class (a base of its own, so that they stand first in the file)."""

    entries: int = Field(ge=0, description="k, the number of entries a contributor in this class has at most")
    entries_used: int = Field(ge=0, description="of these, how many can take part at all")
    budget: float | None = Field(default=None, description="the epsilon that contributors in this class asked for")
    rate: Probability = Field(
        description="probability that one entry (or the contributor, see plan) is drawn in a step"
    )
    clip_norm: float = Field(ge=0, description="clipping norm of this class in units of the plan's clip_norm")


class ClassGuarantee(Facts, _WhichClass):
    """The guarantee of all contributors with the same number of entries and the same budget."""


class AssumedPublic(Fact):
    """A fact that was taken as known to everybody, so that using it cost nothing."""

    what: str
    value: Any = None
    source: str = Field(description="who declared it, and where")


class Spent(Fact):
    """A fact that was learnt from the data and paid for."""

    what: str
    mechanism: dict[str, Any]
    steps: int = Field(default=1, ge=1)
    who: str = Field(description="whose budget it was charged to")


class _WhichMetric(Fact):
    """What was measured, and on whom."""

    metric: str
    value: float | None = Field(description="the noisy estimate; none where the noise is as large as the signal")
    low: float
    high: float
    level: Probability = Field(default=0.95, description="confidence level of the interval, noise included")
    measured_per: Literal["contributor", "entry"] = "contributor"
    who: str
    note: str = ""


class PaidMetric(Facts, _WhichMetric):
    """A figure about the result that was released with noise and charged to the people it was measured on."""


class LedgerReference(Fact):
    """Where a ledger has written this release down. The ledger holds the hash of the finished certificate."""

    ledger: str = Field(description="public id of the ledger")
    reservation: str = Field(description="reservation to look up in that ledger")


class FlowFacts(Fact):
    """Who receives this release and what for, as the ledger's register of information flows has it."""

    sender: str = ""
    recipient: str = ""
    purpose: str = ""
    attributes: tuple[str, ...] = Field(default=(), description="what the release was computed from")


class WrongLinks(Fact):
    """What holds for people of one class where the linkage of ids is wrong, at the certificate's delta."""

    entries: int = Field(ge=0, description="entries of each piece, or of each of two people")
    epsilon: Epsilon = Field(description="as stated for the class, where links are right")
    split_in_2: Epsilon = Field(description="a person known as two contributors with so many entries each")
    split_in_3: Epsilon = Field(description="a person known as three")
    merged: Epsilon | None = Field(
        default=None, description="a person taken for one contributor together with another such person"
    )


class LinkageFacts(Fact):
    """How the entries of one person were found to be one person's: an assumption of every guarantee here."""

    method: str
    rule: str
    assumption: str
    wrong_links: tuple[WrongLinks, ...] = Field(default=(), description="what the assumption is worth where it fails")
    note: str = ""


class Citation(Fact):
    """How to cite this release."""

    text: str
    bibtex: str = ""


class Certificate(Fact):
    """The machine-readable statement in a release; see the field descriptions (`confide.release.json_schema`).

    Raises
    ------
    pydantic.ValidationError
        If a field is missing, unknown or out of range, or if something private was handed in: a key that names a seed,
        a generator or a secret, or a number of contributors that was neither declared public nor paid for.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    kind: Literal["model", "table", "statistic", "federated"] = "model"
    created: str = Field(description="UTC, ISO 8601")
    unit: Literal["contributor", "entry"] = Field(description="whom the guarantee protects as a whole")
    unit_meaning: str
    relation: Relation = Field(
        description="which data sets are neighbours; with zero-out, classes also state what exchanging a person costs"
    )
    relation_meaning: str
    adversary: str
    trusted: tuple[str, ...]
    delta: Probability
    plan: dict[str, Any] = Field(description="policy and public constants, as confide.planning writes them")
    plan_fingerprint: str | None = Field(default=None, description="SHA-256 of the plan's canonical JSON")
    classes: tuple[ClassGuarantee, ...] = Field(min_length=1, description="the guarantee as a function of public facts")
    assumed_public: tuple[AssumedPublic, ...] = ()
    spent: tuple[Spent, ...] = ()
    not_covered: tuple[str, ...]
    stamps: tuple[str, ...] = Field(default=(), description=f"warnings such as {TESTING_ONLY!r} or {NOT_RECORDED!r}")
    evaluation: tuple[PaidMetric, ...] = Field(default=(), description="paid metrics only; exact ones never leave")
    precision: str = Field(default="float32", description="arithmetic in which contributions were clipped and summed")
    versions: dict[str, str] = Field(default_factory=dict)
    artefacts: dict[str, str] = Field(default_factory=dict, description="file name -> SHA-256 of its bytes")
    ledger: LedgerReference | None = None
    flow: FlowFacts | None = Field(default=None, description="who receives it and what for, if that was declared")
    linkage: LinkageFacts | None = Field(
        default=None, description="how people were linked, and what wrong links cost; none where the unit is an entry"
    )
    cite: Citation

    @model_validator(mode="after")
    def _public_facts_only(self) -> Certificate:
        for where, key in _keys({"plan": self.plan, "assumed_public": [fact.value for fact in self.assumed_public]}):
            if _PRIVATE_KEYS.search(key):
                raise ValueError(f"{where} names private state ({key!r}): a certificate holds public facts only")
        histogram = self.plan.get("histogram")
        if histogram not in ("public", "paid"):
            for where, key, value in _items({"plan": self.plan}):
                if key in ("contributors", "expected_contributors", "expected_entries") and value is not None:
                    raise ValueError(
                        f"{where} holds a count, but the entry-count histogram is {histogram!r}, "
                        "neither declared public nor paid for"
                    )
        if histogram == "preview" and PREVIEW not in self.stamps:
            raise ValueError(f"a plan made from a preview on private counts needs the stamp {PREVIEW!r}")
        if self.unit == "entry" and PER_ENTRY not in self.stamps:
            raise ValueError(f"a guarantee per entry needs the stamp {PER_ENTRY!r}")
        if self.ledger is None and NOT_RECORDED not in self.stamps:
            raise ValueError(f"a release that no ledger knows needs the stamp {NOT_RECORDED!r}")
        for facts in (*self.classes, *self.evaluation):
            if facts.delta != self.delta:
                raise ValueError(f"every guarantee is stated at delta {self.delta}, one is at {facts.delta}")
        return self

    @property
    def worst(self) -> ClassGuarantee:
        """The class with the largest epsilon; of several, the one with the most entries."""
        return max(self.classes, key=lambda c: (c.epsilon, c.entries))

    @property
    def best(self) -> ClassGuarantee:
        """The class with the smallest epsilon; of several, the one with the fewest entries."""
        return min(self.classes, key=lambda c: (c.epsilon, c.entries))

    def to_json(self) -> str:
        """Return the certificate as indented JSON with a final newline, the content of `certificate.json`."""
        return self.model_dump_json(indent=2) + "\n"


def _items(value: Any, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (path, key, value) of every key in a nest of mappings and sequences."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            path = f"{where}.{key}" if where else str(key)
            yield path, str(key), inner
            yield from _items(inner, path)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _items(inner, f"{where}[{number}]")


def _keys(value: Any) -> Iterator[tuple[str, str]]:
    for path, key, _ in _items(value):
        yield path, key
