"""What the processes of the distributed tests run, and how they are started; they meet at a file, not at a port."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import PLANS, ZeroNoise, small_plan

from confide.errors import ConfideError
from confide.planning import QuantileClipping
from confide.training import (
    Augmentation,
    Averaging,
    Clipping,
    ClippingEngine,
    ContributorDataset,
    EngineOptions,
    Ensemble,
    Methods,
    PrivateRun,
    ShardedRun,
    join,
    leave,
    make_optimizer,
)
from confide.training.distributed import BlockNoise, Exchange
from confide.training.distributed.ranks import split_like
from confide.training.distributed.sharded import ShardedEngine, whole_state

KEY = bytes(range(32))
COUNTS = [1, 2, 5, 5, 1, 2, 1, 3, 4, 2, 2, 1]
STRATEGIES = ("contributor(2)", "individual", "contributor")


class Recorder(torch.optim.Optimizer):
    """Sees every noisy gradient and moves nothing."""

    def __init__(self, params):
        super().__init__(params, {})
        self.seen = []

    def step(self, closure=None):
        grads = [whole_state(p.grad) for group in self.param_groups for p in group["params"]]
        self.seen.append(torch.cat([g.double().reshape(-1) for g in grads]).numpy())


class Stop(Exception):
    """A crash."""


def data_of(drop=None, bad=None, shift=0.0):
    rng = np.random.default_rng(3)
    ids = [f"person {i:02d}" for i, k in enumerate(COUNTS) for _ in range(k)]
    x = torch.tensor(rng.normal(size=(len(ids), 3)) * 50, dtype=torch.float32)
    y = torch.tensor(rng.integers(0, 2, len(ids)), dtype=torch.float32)
    x[0] += shift
    if bad is not None:
        x[ids.index(f"person {bad:02d}")] = float("nan")
    left_out = None if drop is None else f"person {drop:02d}"
    keep = [i for i, name in enumerate(ids) if name != left_out]
    return ContributorDataset(TensorDataset(x[keep], y[keep]), [ids[i] for i in keep])


def loss(out, y):
    return nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y, reduction="none") * 50


def plan_of(strategy="contributor", steps=6, most=5, **rest):
    return small_plan(strategy, {1: 4, 2: 4, 3: 1, 4: 1, most: 2}, steps=steps, noise_multiplier=1.5, epsilon=30.0,
                      clip_norm=0.7, **rest)  # fmt: skip


def drive(model, optimizer, plan, data, **settings):
    """Train; return the result and the contributors and entries that this process computed in each step."""
    drawn = []
    make = settings.pop("make", PrivateRun)
    run = make(model, settings.pop("loss", loss), optimizer, plan, data, **settings)
    inner = run._ranks.share

    def share(draw):
        mine = inner(draw)
        drawn.append((mine.draw.contributors.tolist(), mine.draw.entries.tolist()))
        return mine

    run._ranks.share = share
    try:
        for batch in run:
            run.step(run.loss(model(batch.inputs), batch.targets))
    finally:
        del run._ranks.share
    return run.result(), drawn


def recorded(plan, data, **settings):
    """Noisy gradients by step, figures and draws of a run whose weights stay where they are."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = Recorder(model.parameters())
    result, drawn = drive(model, optimizer, plan, data, run_key=settings.pop("run_key", KEY), **settings)
    return {"seen": np.array(optimizer.seen) * plan.denominator, "internal": result.internal, "drawn": drawn}


def learner():
    torch.manual_seed(
        torch.initial_seed() % 1000 + 1
    )  # another start in every process: rank 0's is the one that counts
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, make_optimizer("adam", model.parameters(), lr=0.05)


def learned(path=None, *, until=None, resume=False, kill=None, fixed=True, **settings):
    """Train for 20 steps with checkpoints every 4; stop as a crash would once `until` steps are done."""
    if fixed:
        torch.manual_seed(7)
    model, optimizer = learner()
    ranks = settings.get("ranks") or join()
    make = settings.pop("make", PrivateRun)
    run = make(model, loss, optimizer, plan_of(steps=20), data_of(), checkpoint=path, checkpoint_every=4,
               resume=resume, run_key=None if resume else KEY, **settings)  # fmt: skip
    for batch in run:
        run.step(loss(model(batch.inputs), batch.targets))
        if kill is not None and ranks.rank == kill[0] and run.steps_done == kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        if until is not None and run.steps_done >= until:
            return None
    return run.result()


def error_of(act):
    """What a scenario raised: class name and text."""
    try:
        act()
    except ConfideError as error:
        return type(error).__name__, str(error)
    return None


class Bias(nn.Module):
    """4000 weights, so that a step shows the scale of its noise."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1000)

    def forward(self, x):
        return self.linear(x)


def wide(plan, **settings):
    torch.manual_seed(0)
    model = Bias()
    optimizer = Recorder(model.parameters())
    drive(model, optimizer, plan, data_of(), loss=lambda out, y: out.square().mean(1) - y, **settings)
    return np.array(optimizer.seen) * plan.denominator


def variance():
    """The noise alone: a run with noise less the same run without (equal coins, weights that stay)."""
    plan = plan_of("contributor", steps=10)
    scale = plan.noise_multiplier * plan.clip_norm
    return (wide(plan, run_key=KEY) - wide(plan, run_key=KEY, noise=ZeroNoise())) / scale


class Small(nn.Module):
    """Blocks of two sizes that no number of ranks divides evenly."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 6)) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.embed(x)).mean(1)))


def small_task():
    torch.manual_seed(5)
    model, generator = Small(), torch.Generator().manual_seed(6)
    x, y = torch.randint(0, 11, (9, 4), generator=generator), torch.randint(0, 3, (9,), generator=generator)
    units = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    return model, x, y, units, 1.0 / np.bincount(units)[units], np.full(5, 0.4)


def cross_entropy(out, y):
    return nn.functional.cross_entropy(out, y, reduction="none")


def whole_sum():
    """The clipped sum of a small task by one process, flat, and its norms."""
    model, x, y, units, weights, clips = small_task()
    engine = ClippingEngine(model, EngineOptions(engine="fast"))
    found = engine.clipped_sum(lambda rows: cross_entropy(model(x[rows]), y[rows]), units, weights, clips)
    return torch.cat([g.reshape(-1) for g in found.gradients]), found.norms


def in_shards(ranks):
    """The same task with the model cut by FSDP2, a pass for each unit, made-up passes for ranks with fewer."""
    model, x, y, units, weights, clips = small_task()
    engine = ShardedEngine(model, EngineOptions(engine="fast"))
    shards = engine.shard(ranks, torch.device("cpu"), smallest=40)
    mine = [unit for unit in range(5) if unit % ranks.world == ranks.rank]
    for number in range(-(-5 // ranks.world)):
        idle = number >= len(mine)
        rows = np.flatnonzero(units == (0 if idle else mine[number]))
        with engine.capture():
            losses = cross_entropy(model(x[rows]), y[rows])
        engine.add(losses, np.zeros(len(rows)), weights[rows], clips[:1], idle=idle)
    found = engine.take()
    empty = engine.take()
    size = sum(value.numel() for value in shards)
    noise = BlockNoise("default", KEY, 3, 2.0, size)
    starts = engine.flat_starts()
    noisy = [noise.add(g.reshape(-1), s).reshape(g.shape) for g, s in zip(found.gradients, starts, strict=True)]
    optimizer = torch.optim.AdamW(shards, lr=0.1)
    out = {"norms": found.norms, "nonfinite": found.nonfinite, "units": mine, "empty": len(empty.norms),
           "blocks": sum(hasattr(module, "unshard") for module in model.modules()),
           "none": float(sum(g.abs().sum() for g in empty.gradients))}  # fmt: skip
    for name, grads in (("sum", found.gradients), ("noisy", noisy)):
        engine.set_gradients(grads)
        out[name] = torch.cat([g.reshape(-1) for g in whole_state([value.grad for value in shards])])
    optimizer.step()
    state = whole_state(optimizer.state_dict()["state"])
    out["moments"] = torch.cat([state[i]["exp_avg"].reshape(-1) for i in range(len(shards))])
    return out


def exchanged(ranks):
    """Partial sums of rank + 1 times a vector of an odd length, with noise by position."""
    like = [torch.zeros(7, 3), torch.zeros(2), torch.zeros(5, 4)]
    exchange = Exchange(ranks, like)
    base = torch.arange(43, dtype=torch.float64)
    noise = BlockNoise("default", KEY, 1, 0.5, 43)
    parts = [value.clone() * (ranks.rank + 1) for value in split_like(base, like)]
    found = exchange(parts, noise.add)
    assert [value.shape for value in found] == [value.shape for value in like]
    return torch.cat([value.reshape(-1) for value in found])


class Starving(nn.Module):
    """On the last process: no memory for more than five entries, in the forward or in the backward pass."""

    def __init__(self, where):
        super().__init__()
        self.where = where if join().rank == join().world - 1 else None

    def forward(self, x):
        if self.where == "forward" and len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        if self.where == "backward" and len(x) > 5:
            x.register_hook(self.fail)
        return x

    def fail(self, grad):
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")


class Narrow(TensorDataset):
    """On the last process: no memory for more than five entries at once."""

    def __getitems__(self, where):
        if join().rank == join().world - 1 and len(where) > 5:
            raise MemoryError
        return [self[i] for i in where]


def taken(make=PrivateRun, where=None, plan=None, optimizer="sgd", **settings):
    """Train on up to 64 entries at once through `take`; return the weights and how many entries fit in the end."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(3, 4), Starving(where), nn.Tanh(), nn.Linear(4, 1))
    data = data_of()
    if where == "reading":
        data = ContributorDataset(Narrow(*data.dataset.tensors), data.index, collate=torch.utils.data.default_collate)
    optimizer = make_optimizer(optimizer, model.parameters(), lr=0.05)
    run = make(model, loss, optimizer, plan or plan_of(), data, run_key=KEY,
               noise=settings.pop("noise", None) or ZeroNoise(), options=EngineOptions(physical_batch=64),
               **settings)  # fmt: skip
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in run:
            run.take(batch)
    said = [str(warning.message) for warning in told if "out of memory" in str(warning.message)]
    flat = torch.cat([value.reshape(-1) for value in run.result().state_dict.values()])
    return {"weights": flat, "fits": run.engine.physical_batch, "said": said}


def jitter(inputs, numbers):
    return inputs * (1 + 0.1 * numbers[:, :3]).to(inputs.dtype)


METHODS = {
    "views": {"methods": Methods(augmentation=Augmentation(views=2, transform=jitter))},
    "automatic": {"methods": Methods(clipping=Clipping(rule="automatic"))},
    "normalised": {"methods": Methods(clipping=Clipping(normalise=True))},
    "quantile and dp-adam": {"plan": {"clipping": QuantileClipping()}, "optimizer": "dp-adam"},
    "averaging": {"methods": Methods(averaging=Averaging())},
}


def with_methods(name, make=PrivateRun):
    settings = dict(METHODS[name])
    return taken(make, plan=plan_of(**settings.pop("plan", {})), **settings)["weights"]


MEMBERS, MEMBER_STEPS = Methods(ensemble=Ensemble(3)), 4


def in_members():
    """An ensemble: its members with all their noise, who was drawn for each step, and each step's noise alone."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    plan = plan_of("individual", steps=3 * MEMBER_STEPS)
    optimizer = make_optimizer("adam", model.parameters(), lr=0.05)
    result, drawn = drive(model, optimizer, plan, data_of(), run_key=KEY, methods=MEMBERS)
    members = [torch.cat([value.reshape(-1) for value in one.values()]) for one in result.snapshots]
    nobody = np.zeros(len(COUNTS), dtype=bool)
    noise = wide(plan_of(steps=3 * MEMBER_STEPS), admitted=nobody, run_key=KEY, methods=MEMBERS)
    return {"members": members, "drawn": drawn, "noise": noise}


def everything(folder: Path):
    """All scenarios of one world size; the same code runs with one process and with many."""
    ranks = join()
    out = {"rank": ranks.rank, "world": ranks.world}
    out["noiseless"] = {s: recorded(plan_of(s), data_of(), noise=ZeroNoise()) for s in STRATEGIES}
    out["without"] = {
        s: {i: recorded(plan_of(s), data_of(drop=i), noise=ZeroNoise())["seen"] for i in (2, 7)} for s in STRATEGIES[1:]
    }
    out["broken"] = recorded(plan_of(), data_of(bad=2), noise=ZeroNoise())
    out["variance"] = variance()
    nobody = np.zeros(len(COUNTS), dtype=bool)
    out["empty"] = wide(plan_of(steps=4), admitted=nobody)
    out["secure"] = wide(plan_of(steps=2), admitted=nobody, noise="secure")
    out["device"] = wide(plan_of(steps=4), admitted=nobody, noise="device", run_key=KEY)
    out["device sums"] = recorded(plan_of("contributor"), data_of(), noise="device")["seen"]
    out["unseeded"] = recorded(plan_of(), data_of(), noise=ZeroNoise(), run_key=None)
    path = folder / "checkpoint"
    began = learned(path, resume=True, until=12) if path.exists() else learned(path, until=6)
    out["until"] = began
    out["ensemble"] = in_members()
    path = folder / "ensemble"
    going = {"resume": True, "until": 12} if path.exists() else {"until": 6}  # in the first member, then in the second
    learned(path, methods=MEMBERS, **going)
    out["start"] = learned(fixed=False).state_dict
    out["exchange"] = exchanged(ranks)
    cut = functools.partial(ShardedRun, smallest=1, options=EngineOptions(physical_batch=6))
    out["sharded"] = {s: recorded(plan_of(s), data_of(), noise=ZeroNoise(), make=cut) for s in STRATEGIES[1:]}
    out["sharded noise"] = wide(plan_of(steps=3), run_key=KEY, make=cut)
    small = functools.partial(ShardedRun, smallest=1)
    path = folder / "sharded"
    going = {"resume": True, "until": 12} if path.exists() else {"until": 6}
    learned(path, make=cut, **going)
    if ranks.world > 1:
        out["shards"] = in_shards(ranks)
    out["methods"] = {name: with_methods(name) for name in METHODS}
    out["methods in shards"] = {name: with_methods(name, small) for name in METHODS if name != "averaging"}
    few = np.arange(len(COUNTS)) == 3  # in most steps nobody is there for the other processes
    out["few"] = [taken(make, admitted=few)["weights"] for make in (PrivateRun, small)]
    out["memory"] = {where: taken(where=where) for where in (None, "forward", "backward", "reading")}
    out["memory in shards"] = {where: taken(small, where) for where in (None, "forward", "backward", "reading")}
    out["errors"] = {
        "nonfinite": error_of(lambda: recorded(plan_of(), data_of(bad=2), on_nonfinite="stop")),
        "missing": error_of(lambda: learned(folder / "none", resume=True)),
        "data": error_of(lambda: recorded(plan_of(), data_of(shift=float(ranks.rank)))),
        "start": error_of(lambda: recorded(plan_of(), data_of(), on_start=refuse)),
        "memory": error_of(lambda: taken(small, "forward", plan=plan_of(most=7))),
        "disk": error_of(lambda: learned(folder / "missing folder" / "is a file" / "c")),
    }
    return out


def refuse():
    from confide.errors import BudgetError

    raise BudgetError("nobody is admitted")


def killed(folder: Path):
    """One process is killed in the middle; the others are told."""
    last = join().world - 1
    return {"told": error_of(lambda: learned(folder / "killed", kill=(last, 10)))}


def only_variance(folder: Path):
    return {"variance": variance()}


def _process(jobs, rank, world, folder, plans):
    PLANS.update(plans)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for job in jobs:
        result = job(Path(folder))
        (Path(folder) / f"{job.__name__}-{rank}.pickle").write_bytes(pickle.dumps(result))
    leave()


def launch(jobs, world: int, folder: Path, *, timeout: float = 600.0) -> dict[str, list[dict | None]]:
    """Run jobs in `world` processes: results by job and rank, None for a process that left none.

    The timeout ends what hangs and asserts nothing: two processes took 40 s where two cores had eight more to serve.
    """
    # a server without threads that has imported torch forks the processes: each would import for seconds by itself
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["confide.training", "torch._dynamo"])
    processes = [
        context.Process(target=_process, args=(jobs, rank, world, str(folder), PLANS)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} of {world} processes did not end in {timeout} s"
    paths = {job.__name__: [folder / f"{job.__name__}-{rank}.pickle" for rank in range(world)] for job in jobs}
    return {
        name: [pickle.loads(path.read_bytes()) if path.exists() else None for path in files]
        for name, files in paths.items()
    }
