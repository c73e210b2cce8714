"""Whole steps in a run: traced and layer by layer give the same model; clip, shrink and noise are all there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_fast import FAST, batch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset
from training_oracle import ZeroNoise, clip_and_sum, small_plan, squared, unit_gradients

from confide.errors import InputError, RunError
from confide.nn import WSConv1d
from confide.training import ClippingEngine, ContributorDataset, EngineOptions, PrivateRun
from confide.training.engine.fast import graph, kernels
from confide.training.engine.fast.compiled import CompiledStep
from confide.training.engine.memory import CAP, most_entries
from confide.training.engine.sums import ClipAndSum
from confide.training.placing import laid_out
from confide.training.rehearsal import Example, rehearse

IDS = [
    f"c{i}" for i in np.concatenate([np.arange(20), np.repeat(np.arange(20, 30), 2), np.repeat(np.arange(30, 34), 5)])
]
TRACE = {"engine": "fast", "compile": "trace"}


def people():
    torch.manual_seed(0)
    return ContributorDataset(TensorDataset(torch.randn(len(IDS), 3), torch.randn(len(IDS))), IDS)


def make_run(noise=None, strategy="contributor", epsilon=50.0, steps=8, **options):
    settings = {k: options.pop(k) for k in ("checkpoint", "resume", "checkpoint_every") if k in options}
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    plan = small_plan(strategy=strategy, epsilon=epsilon, steps=steps)
    return PrivateRun(
        model, squared, torch.optim.SGD(model.parameters(), lr=0.1), plan, people(), run_key=bytes(32),
        noise=noise or ZeroNoise(), options=EngineOptions(**options), **settings,
    )  # fmt: skip


def finish(run):
    for part in run:
        run.take(part)
    return flat(run.result().state_dict)


def flat(state):
    return torch.cat([value.flatten() for value in state.values()])


@pytest.mark.parametrize("strategy", ["contributor", "individual"])
@pytest.mark.parametrize("physical", [None, 6])
def test_a_run_of_traced_steps_learns_the_same_model(strategy, physical):
    exact, whole = (
        make_run(strategy=strategy, engine="exact"),
        make_run(strategy=strategy, physical_batch=physical, **TRACE),
    )
    torch.testing.assert_close(finish(exact), finish(whole), rtol=1e-4, atol=2e-6)
    assert whole._taking.whole is not None and whole._taking.whole.why_not is None
    assert "compiled" in whole._taking.ways and "shrunk by 3.8e-06" in whole.result().arithmetic
    assert [round(v, 3) for v in exact.result().internal["loss"]] == [
        round(v, 3) for v in whole.result().internal["loss"]
    ]


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter beside it."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 5), nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + 2.0 * self.up(self.down(x))


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype), 1)
        return x + self.inner(x, x, x, attn_mask=mask, need_weights=False)[0]


class TiedWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(torch.tanh(self.words(x.sum(-1).long() % 7)))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return checkpoint(lambda v: self.second(torch.tanh(self.first(v))), x, use_reentrant=False)


class Words(nn.Module):
    """The same word several times in an entry and in several entries of a unit."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(3, 6)

    def forward(self, x):
        return self.words((x > 2).sum(-1))


class Own(nn.Module):
    """Parameters of modules without a rule: a token and places, an adapter's factors, slopes."""

    def __init__(self):
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.down, self.slopes = nn.Parameter(torch.randn(2, 6)), nn.PReLU(5)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.slopes(x) + x @ self.down.t() @ self.down


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x, keep):
        return torch.where(keep[..., None], x * self.scale, x)


class Gated(nn.Module):
    """A module of one's own that is handed a mask."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return self.gate(x, x.sum(-1) > 0)


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        return x + x @ self.down.t() @ self.down


class Crossed(nn.Module):
    """One attention used in two ways: by the rows of its weight, and by all of it at once."""

    def __init__(self):
        super().__init__()
        self.key, self.attention = nn.Linear(6, 6), nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        key = self.key(x)
        x = self.attention(x, key, key, need_weights=False)[0]
        return self.attention(x, x, x, need_weights=False)[0]


NETS = {
    "own": Own,
    "gated": Gated,
    "factors": Factors,
    "words": Words,
    "crossed": Crossed,
    "standardised": lambda: WSConv1d(4, 4, 3, padding=1),
    "adapter": lambda: nn.Sequential(Adapted(), nn.Tanh()),
    "attention": lambda: nn.Sequential(Causal(), nn.LayerNorm(6), Causal()),
    "tied": TiedWords,
    "checkpointed": lambda: nn.Sequential(Checkpointed(), nn.ReLU()),
    "groups": lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv1d(4, 4, 1)),
}


@pytest.mark.parametrize("traced", ["layers", "traced", pytest.param("prepared", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETS)
def test_special_layers_equal_torch_func(name, traced):
    torch.manual_seed(3)
    body = NETS[name]()
    width = body(torch.randn(2, 4, 6)).flatten(1).shape[1]
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(width, 2))
    units, weights, clips, x, y = batch([3, 1, 2], 5, torch.float32)
    plain = name == "checkpointed"  # torch.func cannot pass through it
    want, norms = clip_and_sum(unit_gradients(model, squared, (x,), y, units, weights, plain), clips)
    engine = ClippingEngine(model, FAST)
    rehearse(engine, squared, Example(x, y, values=False), torch.device("cpu"))
    if traced == "layers":
        got = engine.clipped_sum(lambda rows: squared(model(x[rows]), y[rows]), units, weights, clips)
        found = got.gradients
    else:
        step = CompiledStep(engine, squared, compiler=False, prepare=traced == "prepared")
        got = step(x, y, torch.as_tensor(units), torch.as_tensor(weights), torch.as_tensor(clips))
        found = got.gradients
    assert engine.why_exact is None
    np.testing.assert_allclose(got.norms, norms, rtol=2e-3)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=1e-5 * float(b.abs().max() + 1))


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("name", ["own", "gated", "factors"])
def test_modules_that_run_again_do_so_under_bfloat16_products_too(name, even):
    torch.manual_seed(3)
    body = NETS[name]()
    width = body(torch.randn(2, 4, 6)).flatten(1).shape[1]
    model = nn.Sequential(nn.Linear(6, 6), body, nn.Flatten(), nn.Linear(width, 2))
    units, weights, _, x, y = batch([2, 2, 2] if even else [3, 1, 2], 5, torch.float32)
    clips = np.full(3, 1e-3)
    loss = lambda out, target: squared(out.float(), target + 6)  # noqa: E731
    _, norms = clip_and_sum(unit_gradients(model, loss, (x,), y, units, weights), clips)
    engine = ClippingEngine(model, FAST)
    rehearse(engine, loss, Example(x, y, values=False), torch.device("cpu"))
    step = CompiledStep(engine, loss, autocast=torch.bfloat16, compiler=False)
    got = step(x, y, torch.as_tensor(units), torch.as_tensor(weights), torch.as_tensor(clips))
    np.testing.assert_allclose(got.norms, norms, rtol=0.1)
    assert engine.why_exact is None


@pytest.mark.parametrize("name", ["words", "crossed"])
def test_no_unit_adds_more_than_its_clip_where_pieces_are_joined(name):
    """What a prepared step loses of a norm, a unit adds beyond its clip."""
    test_special_layers_equal_torch_func(name, "prepared")
    model = nn.Sequential(NETS[name](), nn.Flatten(), nn.Linear(24, 2))
    step = CompiledStep(ClippingEngine(model, FAST), squared, compiler=False, prepare=True)
    units, weights, _, x, y = batch([3, 1, 2], 5, torch.float32)
    for unit in range(3):
        clips = torch.zeros(3, dtype=torch.float64)
        clips[unit] = 1e-5
        found = step(x, y, torch.as_tensor(units), torch.as_tensor(weights), clips).gradients
        size = torch.cat([value.double().flatten() for value in found]).norm()
        assert 0.99e-5 < float(size) <= 1e-5


def test_a_graph_that_writes_in_place_is_not_cut_and_decomposing_leaves_no_such_write():
    def fill(x):
        held = torch.zeros_like(x)
        held[1:] = x[1:] * 2
        return [held.sum(), held]

    x = torch.randn(4)
    traced = make_fx(fill)(x)
    assert graph.recompute(traced, 1) is traced
    pure = graph.decompose(traced, [x])
    assert not [node for node in pure.graph.nodes if getattr(getattr(node.target, "_schema", None), "is_mutable", 0)]
    torch.testing.assert_close(pure(x)[1], fill(x)[1])


def test_preparing_reads_group_statistics_once():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()) for _ in range(2)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256, 2))
    found, whole = [], graph.recompute

    def keep(module, forward):
        found.extend([module, whole(module, forward)])
        return found[-1]

    graph.recompute, before = keep, graph.recompute
    try:
        step = CompiledStep(ClippingEngine(model, FAST), squared, compiler=False, prepare=True)
        args = torch.arange(8) // 2, torch.ones(8), torch.ones(4, dtype=torch.float64)
        data = torch.randn(8, 4, 8, 8), torch.randn(8), *args
        got, want = step(*data), CompiledStep(step.engine, squared, compiler=False)(*data)
        for a, b in zip(got.gradients, want.gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    finally:
        graph.recompute = before
    names = [str(node.target) for node in found[1].graph.nodes]
    assert sum("var_mean" in name for name in names) == 2
    assert found[1] is not found[0] and graph.peak(found[1]) > 0


def test_memory_that_runs_out_halves_the_physical_batch_with_the_same_result(monkeypatch):
    want = finish(make_run(engine="exact"))
    for options in ({"engine": "exact"}, TRACE):
        run, seen = make_run(physical_batch=64, **options), []

        def hungry(outputs, targets, seen=seen):
            seen.append(len(targets))
            if len(targets) > 12:
                raise torch.OutOfMemoryError("CUDA out of memory. (injected)")
            return squared(outputs, targets)

        run.rehearse()
        run.loss = hungry
        if run._taking.whole is not None:
            run._taking.whole.step.loss = hungry
        with pytest.warns(RuntimeWarning, match="out of memory: from now on at most"):
            got = finish(run)
        assert run.engine.physical_batch <= 12 < max(seen)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)


def test_one_entry_that_does_not_fit_ends_the_run_in_words():
    run = make_run(engine="exact")
    run.rehearse()

    def hungry(outputs, targets):
        if run._draw is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. (injected)")
        return squared(outputs, targets)

    run.loss = hungry
    with pytest.warns(RuntimeWarning), pytest.raises(RunError, match="one entry does not fit"):
        finish(run)


def test_a_device_that_fails_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path):
    want = finish(make_run(engine="exact"))
    file = tmp_path / "run.ckpt"
    run = make_run(engine="exact", checkpoint=file, checkpoint_every=2)
    run.rehearse()

    def failing(outputs, targets):
        if run.steps_done == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")
        return squared(outputs, targets)

    run.loss = failing
    with pytest.raises(RunError, match="the device failed") as caught:
        finish(run)
    assert "--resume" in str(caught.value)
    again = make_run(engine="exact", checkpoint=file, resume=True)
    assert again.steps_done == 4
    torch.testing.assert_close(finish(again), want)


def test_noise_on_the_device_has_the_planned_size_in_a_traced_run():
    quiet, loud = make_run(**TRACE), make_run(noise="device", **TRACE)
    steps, moved = loud.plan.steps, []
    for _ in range(12):
        loud._keys = type(loud._keys).start(np.random.default_rng(len(moved)).bytes(32))
        before = flat(loud.model.state_dict()).clone()
        total = loud.engine.take(native=True)  # nothing was added: noise alone
        loud._set_gradients(total)
        moved.append(torch.cat([value.grad.flatten() for value in loud.engine.parameters]))
        assert torch.equal(before, flat(loud.model.state_dict()))
    expected = loud.plan.noise_multiplier * loud.plan.clip_norm / loud.plan.denominator
    assert float(torch.cat(moved).std()) == pytest.approx(expected, rel=0.15)
    assert steps == quiet.plan.steps and "ChaCha20" in loud.arithmetic()


def test_one_unit_of_a_traced_step_never_adds_more_than_its_clip_gives_room_for():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3)), torch.randn(6, 8), torch.randn(6)
    engine = ClippingEngine(model, FAST)
    step = CompiledStep(engine, squared, compiler=False)
    for unit in range(3):
        clips = torch.zeros(3, dtype=torch.float64)
        clips[unit] = 1e-2
        got = step(x, y, torch.arange(6) // 2, torch.ones(6), clips)
        size = float(torch.stack([g.double().square().sum() for g in got.gradients]).sum().sqrt())
        # inside the clip by what the arithmetic gives up, and not by much more
        assert 0.99e-2 < size <= 1e-2 * (1 - 0.4 * engine.arithmetic.shrink)


def test_sums_of_a_compiled_step_are_kept_before_the_next_one_overwrites_them():
    sums = ClipAndSum([nn.Parameter(torch.zeros(2))])
    place = torch.tensor([1.0, 2.0])
    one = torch.ones(1, dtype=torch.float64)
    sums.add_sums([place], one, one)
    sums.keep()
    place.fill_(5.0)  # what the next replay does
    sums.add_sums([place], one, one)
    assert sums.take().gradients[0].tolist() == [6.0, 7.0]


def test_the_physical_batch_follows_memory_and_options_are_checked():
    small = [torch.zeros(10)]
    assert most_entries(small, 0) == CAP
    assert most_entries(small, 2**40) == 1 and most_entries(small, 2**24) < CAP
    assert ClippingEngine(nn.Linear(2, 1)).physical_batch == CAP
    with pytest.raises(InputError, match="unknown precision"):
        EngineOptions(precision="fp8")
    with pytest.raises(InputError, match="loss scale"):
        EngineOptions(precision="fp16")
    with pytest.raises(InputError, match="unknown compile"):
        EngineOptions(compile="maybe")
    assert kernels.check(torch.device("cpu")) == frozenset()


def test_gradients_are_laid_out_as_their_parameters():
    like = torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    value = torch.arange(48, dtype=torch.float64).reshape(4, 3, 2, 2)
    out = laid_out(value, like)
    assert out.stride() == like.stride() and out.dtype == torch.float32 and torch.equal(out.double(), value)
    assert laid_out(out, like) is out


class Looks(nn.Module):
    """Looks at its values, where there are more entries than `above`: no trace can follow."""

    def __init__(self, above=0):
        super().__init__()
        self.inner, self.above = nn.Linear(3, 1), above

    def forward(self, x):
        if len(x) > self.above and float(x.detach().sum().abs()) < 0.0:
            return x[:, :1]
        return self.inner(x)


def looking(above=0, nobody=False, **options):
    torch.manual_seed(1)
    model, plan = Looks(above), small_plan(strategy="contributor", epsilon=50.0)
    admitted = np.zeros(34, dtype=bool) if nobody else None
    return PrivateRun(
        model, squared, torch.optim.SGD(model.parameters(), lr=0.1), plan, people(), run_key=bytes(32),
        noise=ZeroNoise(), options=EngineOptions(engine="fast", **options), admitted=admitted,
    )  # fmt: skip


@pytest.mark.parametrize("nobody", [False, True])
def test_whether_steps_are_compiled_is_found_on_random_entries_and_stated_as_it_is(nobody):
    run, layers = looking(nobody=nobody, compile="trace"), looking(nobody=nobody, compile="no")
    with pytest.warns(RuntimeWarning, match="steps are not compiled: it cannot be traced"):
        finish(run)
    finish(layers)
    assert list(run._taking.ways) == ([] if nobody else ["layer by layer"])
    assert run.arithmetic() == layers.arithmetic() and "compiled steps" not in run.arithmetic()


def test_a_batch_that_no_trace_can_follow_does_not_show_in_what_is_stated():
    """Four random entries were traced; larger batches fall back, and the statement must not tell of any."""
    run, nobody = looking(8, compile="trace"), looking(8, nobody=True, compile="trace")
    with pytest.warns(RuntimeWarning, match="it cannot be traced"):
        found = finish(run)
    finish(nobody)
    assert list(run._taking.ways) == ["layer by layer"]
    assert run.arithmetic() == nobody.arithmetic() and "compiled steps: float32" in run.arithmetic()
    torch.testing.assert_close(found, finish(looking(8, compile="no")))


def test_steps_run_as_they_were_traced_where_the_compiler_fails(monkeypatch):
    """The trial compiles nothing; later the traced graph does what is stated, bfloat16 products included."""
    asked = []

    def broken(graph, **_):
        def fail(*_):
            asked.append(graph)
            raise RuntimeError("no C++ compiler (injected)")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    made = [make_run(engine="fast", compile=way, precision="bf16") for way in ("yes", "trace")]
    run, wanted = made
    batches = iter(run)
    first = next(batches)
    assert run._taking.traced and not asked and run._taking.whole.step.compilations == 0
    with pytest.warns(RuntimeWarning, match="steps run as they were traced: the compiler failed"):
        run.take(first)
    for part in batches:
        run.take(part)
    assert len(asked) == 1 and list(run._taking.ways) == ["compiled"]
    assert "whole steps traced: the compiler failed" in run.result().internal["engine"]
    torch.testing.assert_close(flat(run.result().state_dict), finish(wanted))
    assert run.arithmetic() == wanted.arithmetic() and "bfloat16 products" in run.arithmetic()
