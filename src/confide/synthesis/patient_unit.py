"""The default method: tables of patients and visits with the patient as the unit of everything.

Four passes over the data, each noised and metered (`confide.synthesis.meter`):

1. the number of patients; one-way tables of static columns, of the number of visits and (weight 1/k) of visit columns,
   centred at the uniform distribution;
2. the strength of every candidate two-way table, on the 1/k table: Euclidean norms of centred tables, released together
   with noise for the sensitivity of the whole vector (the clip of the joint contribution);
3. one-way tables again, now centred at the first answer, which makes clipping cheap;
4. the chosen two-way tables (static with static; static, previous value or other visit column with visit column).

A public rule (`confide.synthesis.rules`) splits the budget, picks cap and clip, and decides how many two-way tables are
worth measuring, down to none: on small tables independence is the better model. Fitting and generation only use the
noisy answers: patients are drawn with their number of visits, then visit by visit, and samples are balanced
(`confide.synthesis.balance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.synthesis.balance import balanced
from confide.synthesis.base import Measurement, NoisyModel, RowRule, Synthesizer
from confide.synthesis.candidates import candidate_blocks, typical_norm
from confide.synthesis.chain import time_var
from confide.synthesis.chain_fit import _PANEL_SEED, NOTHING, Linked, fit_chain
from confide.synthesis.contributions import (
    Block,
    Patients,
    Var,
    batch_rows,
    batch_sum,
    block_size,
    cells_of,
    name_of,
    split,
)
from confide.synthesis.domain import Floats, Ints
from confide.synthesis.estimates import SEVERAL, Answer, posterior_distribution, posterior_interaction
from confide.synthesis.first import column_of, ones, per_patient
from confide.synthesis.followup import (
    DERIVED,
    FollowedDomain,
    FollowedPatients,
    WithoutDerived,
    follow_up_rules,
    followed,
    own_static,
)
from confide.synthesis.links import products_of, read_links
from confide.synthesis.meter import Meter
from confide.synthesis.rules import (
    HALF_MEAN_ABSOLUTE,
    POSTERIOR_GAIN,
    Allocation,
    Candidate,
    CountLaw,
    allocate,
    count_values,
    patient_clip,
    uneven_weights,
    visit_weighting,
)

SHARE_PATIENTS = 0.03
SHARE_FIRST = 0.12
SHARE_SCORES = 0.08
# Below this many standard deviations a strong dependence (norm 0.2 per patient) could not be told from noise.
SCORE_SNR = 2.0
STRONG_NORM = 0.2
TARGET_WEIGHT = 2.0
# Largest predicted error (total variation) of a one-way table of when visits begin and end for it to be of use: where
# it is larger, it would spoil what is known of the times of visits.
FOLLOW_ERROR = 0.1
# Share of the covariances of scores: more where nothing but them will be measured of dependence.
LINK_SHARE_ALONE, LINK_SHARE = 0.2, 0.12
# Predicted error of one-way tables above which they need nearly all of the budget (all, if only single visits matter).
LINK_ERROR, LINK_SHARE_NOISY = 0.035, 0.08


def _capped(cap: float) -> Callable[[Ints], Floats]:
    def weight(counts: Ints) -> Floats:
        return np.asarray(np.minimum(1.0, cap / np.maximum(counts, 1)), dtype=np.float64)

    return weight


@dataclass(frozen=True)
class PatientUnit(Synthesizer):
    """The default synthesiser; see the module's description.

    Attributes
    ----------
    estimand : "visit" or "patient"
        Whether the table should be right per visit (patients with many visits count more) or per patient.
    structure : "rule" or "none"
        "none" measures no two-way table: independence at full budget.
    focus : "history" or "visit"
        "visit" spends nothing on what comes after what: visits of a patient are then as right as can be one by one, and
        share the patient's static columns, but are in no order that means anything.
    """

    estimand: str = "visit"
    structure: str = "rule"
    focus: str = "history"
    name: str = "patient-unit"

    def fit(
        self, panel: Patients, meter: Meter, *, scale: Floats | None = None, rules: Sequence[RowRule] = ()
    ) -> NoisyModel:
        """Measure, fit and return the noisy model; see `Synthesizer.fit`."""
        if self.estimand not in ("visit", "patient"):
            raise InputError(f"estimand is {self.estimand!r}", expected="'visit' or 'patient'")
        if self.focus not in ("history", "visit"):
            raise InputError(f"focus is {self.focus!r}", expected="'history' or 'visit'")
        return _Fit(panel, meter, self, scale, tuple(rules)).run()


class _Fit:
    """One run of the four passes; private state lives only here."""

    def __init__(
        self, panel: Patients, meter: Meter, options: PatientUnit, scale: Floats | None, rules: tuple[RowRule, ...]
    ) -> None:
        self.meter, self.options, self.scale = meter, options, scale
        self.panel, self.original, self.rules = panel, panel.domain, rules
        self._look_at(panel)
        self.measured: list[Measurement] = []
        self.per_patient = options.estimand == "patient"
        self.cap = 1.0
        self.first_answers: dict[Var, Answer] = {}
        self.centre_error = 0.0

    def _look_at(self, panel: Patients) -> None:
        """Set the columns that the passes are about."""
        self.panel, self.domain = panel, panel.domain
        self.own_rules = follow_up_rules(self.domain)
        self.static_vars = [Var("static", i) for i in range(len(self.domain.static))]
        self.count_vars = [Var("count")] if self.domain.visit else []
        self.visit_vars = [Var("visit", i) for i in range(len(self.domain.visit))]

    def _follow(self, patients: float) -> None:
        """Add follow-up to the patients' columns where there are enough patients to learn it: a public rule."""
        wider = followed(self.original)
        if self.options.structure == "none" or self.options.focus == "visit" or wider is self.original:
            return
        cells = max(column.cells for column in wider.static[-DERIVED:])
        bound = math.sqrt(len(wider.names) + 1)
        error = HALF_MEAN_ABSOLUTE * cells * self.meter.deviation(bound, SHARE_FIRST) / patients
        if error <= FOLLOW_ERROR:
            self._look_at(FollowedPatients(self.panel, wider))

    # -- looks at the data -------------------------------------------------------------------------------------

    def _sum(
        self, name: str, blocks: Sequence[Block], centres: dict[Var, Floats], clip: float, weight: object, share: float
    ) -> list[Floats]:
        assert callable(weight)
        exact = batch_sum(self.panel, blocks, centres, clip=clip, weight=weight, scale=self.scale)
        noisy = self.meter.gaussian(name, exact, sensitivity=clip, share=share)
        return split(self.domain, blocks, noisy)

    def _first(self) -> tuple[CountLaw, dict[Var, Floats]]:
        count = np.array([self.panel.patients if self.scale is None else self.scale.sum()], dtype=np.float64)
        patients = float(self.meter.gaussian("number of patients", count, sensitivity=1.0, share=SHARE_PATIENTS)[0])
        patients = max(patients, 1.0)
        self._follow(patients)
        everything = [*self.count_vars, *self.static_vars, *self.visit_vars]
        uniform = {var: np.full(cells_of(self.domain, var), 1 / cells_of(self.domain, var)) for var in everything}
        at_patient = [Block("patient", var) for var in (*self.count_vars, *self.static_vars)]
        at_visit = [Block("visit", var) for var in self.visit_vars]
        # Static and visit rows side by side in one vector: at most sqrt(sum of 1 - 1/n) whatever the patient.
        bound = math.sqrt(sum(1 - 1 / cells_of(self.domain, var) for var in everything)) or 1.0
        exact = np.concatenate(
            [
                batch_sum(self.panel, blocks, uniform, clip=bound, weight=weight, scale=self.scale)
                for blocks, weight in ((at_patient, ones), (at_visit, per_patient))
                if blocks
            ]
        )
        noisy = self.meter.gaussian("first one-way tables", exact, sensitivity=bound, share=SHARE_FIRST)
        deviation = self.meter.deviation(bound, SHARE_FIRST) / patients
        centres = {}
        for block, part in zip(
            [*at_patient, *at_visit], split(self.domain, [*at_patient, *at_visit], noisy), strict=True
        ):
            self.first_answers[block.right] = Answer(uniform[block.right] + part / patients, deviation)
            centres[block.right] = self._shares(block.right, self.first_answers[block.right])
        cells = float(np.mean([len(centre) for centre in centres.values()]))
        self.centre_error = min(0.4 * cells * deviation, 0.35)
        return self._law(patients, centres), centres

    def _law(self, patients: float, centres: dict[Var, Floats]) -> CountLaw:
        if not self.domain.visit:
            return CountLaw(patients, np.ones(1), np.ones(1))
        p = centres[Var("count")]
        bins = count_values(self.domain.count_starts, self.domain.max_visits, p)
        return CountLaw(patients, np.array([float(values @ weight) for values, weight in bins]), p)

    def _scores(self, law: CountLaw, centres: dict[Var, Floats]) -> tuple[list[Block], list[Candidate]]:
        blocks = candidate_blocks(self.domain, self.options.focus)
        if self.options.structure == "none" or not blocks:
            return [], []
        if not self._tables_can_pay(law, centres):
            return [], []
        typical = typical_norm(self.domain, blocks, centres)
        deviation = self.meter.deviation(typical, SHARE_SCORES)
        at_patient = [b for b in blocks if b.level == "patient"]
        at_visit = [b for b in blocks if b.level == "visit"]
        rows = np.zeros(sum(block_size(self.domain, b) for b in blocks))
        exact_rows = self._joint(at_patient, at_visit, centres, typical, rows)
        norms = np.array(
            [float(np.linalg.norm(part)) for part in split(self.domain, [*at_patient, *at_visit], exact_rows)]
        )
        noisy = self.meter.gaussian("strength of two-way tables", norms, sensitivity=typical, share=SHARE_SCORES)
        # Empirical Bayes over the noisy scores, so that the best of many noise draws is not believed.
        mean = max(float(noisy.mean()), 0.0)
        spread = max(float(noisy.var()) - deviation**2, 0.0)
        shrink = spread / (spread + deviation**2)
        ordered: list[tuple[float, Block, Candidate]] = []
        for block, score in zip([*at_patient, *at_visit], noisy, strict=True):
            cells = block_size(self.domain, block)
            one = typical_norm(self.domain, [block], centres)
            believed = max(mean + shrink * (float(score) - mean), 0.0)
            # independent columns of a finite sample have a norm, too
            believed = math.sqrt(max(believed**2 - law.patients * one**2, 0.0))
            strength = 0.4 * math.sqrt(cells) * believed / law.patients
            assert block.left is not None
            if self.domain.target in (
                column_of(self.domain, block.left).name,
                column_of(self.domain, block.right).name,
            ):
                strength *= TARGET_WEIGHT
            ordered.append((strength, block, Candidate(cells, strength, block.level, one)))
        # strongest per unit of what measuring it costs the others; ties by position, never by data
        ordered.sort(key=lambda item: -item[0] / math.sqrt(item[2].typical * item[2].cells))
        ordered = [item for item in ordered if item[0] > 0]
        return [block for _, block, _ in ordered], [candidate for _, _, candidate in ordered]

    def _tables_can_pay(self, law: CountLaw, centres: dict[Var, Floats]) -> bool:
        """Whether a strong dependence in a whole two-way table could be told from noise: a public rule."""
        typical = typical_norm(self.domain, candidate_blocks(self.domain, self.options.focus), centres)
        return STRONG_NORM * law.patients >= SCORE_SNR * self.meter.deviation(typical, SHARE_SCORES)

    def _one_way_error(self, law: CountLaw, centres: dict[Var, Floats]) -> float:
        """Predict the error of one-way tables if nothing else were measured: a public rule."""
        singles = [Block("visit", var) for var in (*self.static_vars, *self.visit_vars)]
        cells = float(np.mean([block_size(self.domain, b) for b in singles]))
        deviation = self.meter.deviation(typical_norm(self.domain, singles, centres), self.meter.left) / law.patients
        return POSTERIOR_GAIN * HALF_MEAN_ABSOLUTE * cells * deviation

    def _links(self, law: CountLaw, centres: dict[Var, Floats]) -> Linked:
        blocks = candidate_blocks(self.domain, self.options.focus)
        if self.options.structure == "none" or not blocks:
            return NOTHING
        share = LINK_SHARE if self._tables_can_pay(law, centres) else LINK_SHARE_ALONE
        if self._one_way_error(law, centres) > LINK_ERROR:
            if self.options.focus == "visit":
                return NOTHING
            share = min(share, LINK_SHARE_NOISY)
        past = [
            Block("visit", b.right, Var("past", b.right.position)) for b in blocks if b.left and b.left.kind == "lag"
        ]
        if isinstance(self.domain, FollowedDomain) and (time := time_var(self.domain)) is not None:
            past.append(Block("visit", time, Var("gap", time.position)))
        products = products_of(self.domain, [*blocks, *past], centres, TARGET_WEIGHT)
        clip = products.typical
        exact = products.total(self.panel, centres, clip=clip, scale=self.scale)
        noisy = self.meter.gaussian("covariances of scores", exact, sensitivity=clip, share=share)
        k = np.maximum(law.values, 1.0)
        some = float(law.p @ (law.values > 0.5)) if self.domain.visit else 1.0
        lagged = float(law.p @ ((law.values > 0.5) * (k - 1) / k)) if self.domain.visit else 0.0
        return read_links(
            products,
            noisy,
            self.meter.deviation(clip, share),
            patients=law.patients,
            with_visits=law.patients * max(some, 0.05),
            with_lag=law.patients * lagged,
        )

    def _joint(
        self, at_patient: list[Block], at_visit: list[Block], centres: dict[Var, Floats], clip: float, total: Floats
    ) -> Floats:
        """Sum contributions of both levels under one clip per patient (rows of both side by side)."""
        cells = len(total)
        size = max(1, (48 << 20) // (24 * cells))
        for start, part in self.panel.blocks(size):
            sides = [
                batch_rows(part, blocks, centres, clip=math.inf, weight=weight)
                for blocks, weight in ((at_patient, ones), (at_visit, per_patient))
                if blocks
            ]
            rows = np.concatenate(sides, axis=1)
            factor = np.minimum(1.0, clip / np.maximum(np.linalg.norm(rows, axis=1), 1e-300))
            if self.scale is not None:
                factor = factor * self.scale[start : start + part.patients]
            total += factor @ rows
        return total

    # -- the run -----------------------------------------------------------------------------------------------

    def run(self) -> NoisyModel:
        law, centres = self._first()
        linked = self._links(law, centres)
        blocks, candidates = self._scores(law, centres)
        left = self.meter.left * (1 - 1e-9)
        at_patient = [Block("patient", var) for var in (*self.count_vars, *self.static_vars)]
        at_visit = [Block("visit", var) for var in self.visit_vars]
        if at_visit and not self.per_patient:
            at_visit = [*at_visit, *(Block("visit", var) for var in self.static_vars[: own_static(self.domain)])]
        d = len(self.original.names)
        plan = allocate(
            law,
            self.meter.mu * math.sqrt(left),
            patient_cells=[block_size(self.domain, b) for b in at_patient] or [1],
            patient_typical=typical_norm(self.domain, at_patient, centres),
            visit_cells=[block_size(self.domain, b) for b in at_visit],
            visit_typical=typical_norm(self.domain, at_visit, centres),
            candidates=candidates,
            per_patient=self.per_patient,
            pairs=max(1, d * (d - 1) // 2),
        )
        blocks = blocks[: plan.chosen]
        if not at_patient:
            plan = Allocation(
                0.0, plan.visit_one_way + plan.patient_one_way, plan.patient_pairs, plan.visit_pairs, plan.chosen
            )
        one_way, tilted = self._one_ways(law, centres, at_patient, at_visit, plan, left)
        if self.count_vars:
            law = self._law(law.patients, one_way)
        pairs = self._pairs(law, centres, one_way, blocks, plan, left)
        chain = fit_chain(
            self.domain,
            law,
            {**centres, **one_way},
            one_way,
            tilted,
            pairs,
            cap=self.cap,
            rules=(*self.own_rules, *self.rules),
            linked=linked,
        )
        generator = balanced(
            chain,
            self.domain,
            one_way,
            tilted,
            pairs,
            {**centres, **one_way},
            cap=self.cap,
            patients=law.patients,
            visits=law.mean,
            rng=np.random.default_rng(_PANEL_SEED),
            rules=(*self.own_rules, *self.rules),
        )
        return NoisyModel(
            method=self.options.name,
            domain=self.original,
            patients=law.patients,
            generator=generator
            if self.domain is self.original
            else WithoutDerived(generator, self.original, self.own_rules),
            measurements=tuple(self.measured),
            parts=tuple(self.meter.parts),
            rules=self.rules,
        )

    def _one_ways(
        self,
        law: CountLaw,
        centres: dict[Var, Floats],
        at_patient: list[Block],
        at_visit: list[Block],
        plan: Allocation,
        left: float,
    ) -> tuple[dict[Var, Floats], dict[Var, Floats]]:
        asked: dict[Var, Answer] = dict(self.first_answers)
        at_rows: dict[Var, Answer] = {}
        cap = 1.0
        if at_patient:
            share = plan.patient_one_way * left
            clip = patient_clip(typical_norm(self.domain, at_patient, centres))
            parts = self._sum("one-way tables of patients", at_patient, centres, clip, ones, share)
            deviation = self.meter.deviation(clip, share) / law.patients
            for block, part in zip(at_patient, parts, strict=True):
                # both passes ask the same of static columns: average by precision
                now = Answer(centres[block.right] + part / law.patients, deviation)
                asked[block.right] = asked[block.right].joined(now)
        if at_visit:
            if self.count_vars and at_patient:
                law = self._law(law.patients, {Var("count"): self._shares(Var("count"), asked[Var("count")])})
            share = plan.visit_one_way * left
            noise = 1 / (self.meter.mu * math.sqrt(share))
            typical = typical_norm(self.domain, at_visit, centres)
            cells = float(np.mean([block_size(self.domain, b) for b in at_visit]))
            w = visit_weighting(
                law,
                typical,
                noise,
                cells,
                caps=[1.0] if self.per_patient else None,
                centre_error=self.centre_error,
            )
            parts = self._sum("one-way tables of visits", at_visit, centres, w.clip, _capped(w.cap), share)
            deviation = self.meter.deviation(w.clip, share) / w.mass
            at_rows = {
                block.right: Answer(centres[block.right] + part / w.mass, deviation)
                for block, part in zip(at_visit, parts, strict=True)
            }
            cap = self.cap = w.cap
        one_way: dict[Var, Floats] = {}
        tilted: dict[Var, Floats] = {}
        uneven = uneven_weights(law, cap)
        for level, own, other in (("patient", asked, at_rows), ("visit", at_rows, asked)):
            for block in at_patient if level == "patient" else at_visit:
                var = block.right
                answer = own[var]
                apart = uneven * math.sqrt(float(centres[var] @ (1 - centres[var])) / len(centres[var]))
                estimate = self._shares(var, answer.joined(other[var], apart) if var in other else answer)
                (tilted if level == "visit" and var.kind == "static" else one_way)[var] = estimate
                self.measured.append(
                    Measurement((name_of(self.domain, var),), level, answer.noisy, answer.deviation, estimate)
                )
        return one_way, tilted

    def _shares(self, var: Var, answer: Answer) -> Floats:
        return posterior_distribution(
            answer.noisy, answer.deviation, column_of(self.domain, var), count=var.kind == "count", priors=SEVERAL
        )

    def _pairs(
        self,
        law: CountLaw,
        centres: dict[Var, Floats],
        one_way: dict[Var, Floats],
        blocks: list[Block],
        plan: Allocation,
        left: float,
    ) -> dict[Block, tuple[Floats, float]]:
        # Recentre at the better one-way answers: they are released, so they may serve as centres.
        better = {**centres, **one_way}
        found: dict[Block, tuple[Floats, float]] = {}
        for level, share in (("patient", plan.patient_pairs * left), ("visit", plan.visit_pairs * left)):
            batch = [block for block in blocks if block.level == level]
            if not batch or share <= 0:
                continue
            typical = typical_norm(self.domain, batch, better)
            weight: Callable[[Ints], Floats]
            if level == "patient":
                clip, mass, weight = patient_clip(typical), law.patients, ones
            else:
                noise = 1 / (self.meter.mu * math.sqrt(share))
                cells = float(np.mean([block_size(self.domain, b) for b in batch]))
                w = visit_weighting(law, typical, noise, cells, caps=[self.cap])
                clip, mass, weight = w.clip, w.mass, _capped(w.cap)
            parts = self._sum(f"two-way tables of {level}s", batch, better, clip, weight, share)
            deviation = self.meter.deviation(clip, share) / mass
            for block, part in zip(batch, parts, strict=True):
                assert block.left is not None
                left_column, right_column = column_of(self.domain, block.left), column_of(self.domain, block.right)
                p = better[Var("visit", block.left.position)] if block.left.kind == "lag" else better[block.left]
                q = better[block.right]
                table = part.reshape(len(p), len(q)) / mass
                estimate, _ = posterior_interaction(table, deviation, p, q, left_column, right_column)
                found[block] = (estimate, deviation)
                names = (name_of(self.domain, block.left), name_of(self.domain, block.right))
                self.measured.append(
                    Measurement(names, level, table + np.outer(p, q), deviation, estimate + np.outer(p, q))
                )
        return found


def guarantee_of(model: NoisyModel) -> Guarantee:
    """Return the composed guarantee of a fitted model."""
    return model.guarantee()
