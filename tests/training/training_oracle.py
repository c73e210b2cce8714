"""What the engine must equal: the gradient of each unit by torch.func, clipped and summed in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import functional_call, grad

from confide.planning import plan
from confide.training import ClippingEngine, EngineOptions
from confide.training.rehearsal import Example, rehearse


def unit_gradients(model, loss, inputs, targets, units, weights, plain=False):
    """Return {name: (units, *shape)} in float64-comparable precision, unit by unit, without the engine."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    count = int(np.max(units)) + 1 if len(units) else 0
    out = {n: torch.zeros(count, *p.shape, dtype=p.dtype) for n, p in named.items()}
    for u in range(count):
        rows = torch.as_tensor(np.flatnonzero(np.asarray(units) == u))
        w = torch.as_tensor(np.asarray(weights)[rows.numpy()], dtype=targets_dtype(model))

        def total(own, rows=rows, w=w):
            picked = tuple(x[rows] for x in inputs)
            return (loss(functional_call(model, own, picked), targets[rows]) * w).sum()

        if plain:  # kernels that torch.func cannot pass through
            live = [p for p in model.parameters() if p.requires_grad]
            found = torch.autograd.grad((loss(model(*(x[rows] for x in inputs)), targets[rows]) * w).sum(), live)
            found = dict(zip(named, found, strict=True))
        else:
            found = grad(total)(named)
        for n, g in found.items():
            out[n][u] = g
    return out


def targets_dtype(model):
    return next(model.parameters()).dtype


def clip_and_sum(gradients, clips):
    norms = torch.stack([g.double().flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    factor = torch.clamp(torch.as_tensor(np.asarray(clips, dtype=float)) / norms.clamp_min(1e-300), max=1.0)
    return [(g.double() * factor.reshape(-1, *[1] * (g.dim() - 1))).sum(0) for g in gradients.values()], norms.numpy()


def engine_for(model, loss, inputs, targets, physical=None, check=True):
    engine = ClippingEngine(model, EngineOptions(physical_batch=physical))
    if check:
        packed = inputs[0] if len(inputs) == 1 else tuple(inputs)
        rehearse(engine, loss, Example(packed, targets, values=False), torch.device("cpu"))
    return engine


def assert_matches(
    model, loss, inputs, targets, units, weights, clips, *, physical=None, check=True, rtol=1e-4, plain=False
):
    """Engine against oracle; returns the engine for further looks."""
    engine = engine_for(model, loss, inputs, targets, physical, check)

    def forward(rows):
        rows = torch.as_tensor(rows)
        return loss(model(*(x[rows] for x in inputs)), targets[rows])

    got = engine.clipped_sum(forward, units, weights, clips)
    want, norms = clip_and_sum(unit_gradients(model, loss, inputs, targets, units, weights, plain), clips)
    np.testing.assert_allclose(got.norms, norms, rtol=1e-3, atol=1e-5 * max(1.0, float(norms.max(initial=0))))
    scale = max(float(w.abs().max()) for w in want)
    for name, a, b in zip(engine.names, got.gradients, want, strict=True):
        assert a.dtype == torch.float64
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=rtol, atol=2e-5 * scale, err_msg=name)
    return engine


def squared(outputs, targets):
    """A loss of one value for each entry, whatever the shape of the output."""
    return (outputs.flatten(1) - targets[:, None]).square().mean(1)


PLANS = {}  # made once each: a plan never changes, and what it costs to make one is tested in its own room


def small_plan(strategy="individual", counts=None, steps=8, noise_multiplier=1.0, clip_norm=1.0, epsilon=4.0, **rest):
    settings = {"noise_multiplier": noise_multiplier, "steps": steps, "strategy": strategy, "clip_norm": clip_norm}
    wanted = {"epsilon": epsilon, "delta": 1e-3, **settings, **rest}
    counts = counts or {1: 20, 2: 10, 5: 5}
    key = repr((counts, sorted(wanted.items())))
    if key not in PLANS:
        PLANS[key] = plan(counts, **wanted)
    return PLANS[key]


class ZeroNoise:
    """Frozen noise: what the optimiser gets is the clipped sum over the denominator."""

    testing_only = True

    def __init__(self):
        self.calls = []

    def add_normal(self, values, *, scale):
        self.calls.append((values.shape, scale))
        return np.asarray(values)

    def margin(self, dimensions, *, scale, norm=2):
        return 0.0


class Recorder(torch.optim.Optimizer):
    """The adversary of the guarantee: sees every noisy gradient; moves nothing, so that runs stay comparable."""

    def __init__(self, params):
        super().__init__(params, {})
        self.seen = []

    def step(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.seen.append(torch.cat([g.double().reshape(-1) for g in grads]).numpy())
