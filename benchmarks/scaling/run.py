"""How the contributor-level step scales over the GPUs of one host: results.json here, docs/scaling.md from it.

    python benchmarks/scaling/run.py                # 1, 2, 4, ... processes up to the devices, on CUDA with NCCL
    python benchmarks/scaling/run.py --small        # CPU and gloo with 1 and 2 processes on small models
    python benchmarks/scaling/run.py --report       # results.json and the page from build/scaling/rows.jsonl only

For each workload and each number of processes: a private step with equal work for each process (weak scaling) and with
the work of one divided among them (strong scaling). A step is the compiled forward, backward, norms and clipped sums of
contributors of 4 in bfloat16 (replayed as a CUDA graph, as in training), the sum over processes, noise on every
process's part, and SGD. Besides: what the noisy update varies by against theory, who was drawn, and a transformer whose
weights and optimiser state exceed one device.

As many processes as the largest number are started once and compile once; smaller numbers are measured on the first of
them while the others rest.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(HERE), str(HERE.parent / "engine"), str(ROOT / "src")]
from workloads import WORKLOADS, ConvNet, Transformer, Workload, classify  # noqa: E402

from confide.training import ContributorDataset, EngineOptions, PrivateRun, Ranks, join, leave  # noqa: E402
from confide.training.distributed import BlockNoise, Exchange  # noqa: E402
from confide.training.distributed.sharded import ShardedEngine  # noqa: E402
from confide.training.engine.fast.compiled import CompiledStep  # noqa: E402
from confide.training.engine.fast.engine import FastClippingEngine  # noqa: E402

ROWS, RESULTS = ROOT / "build" / "scaling" / "rows.jsonl", HERE / "results.json"
CLIP, NOISE, RATE, EACH, KEY = 1.0, 1.0, 0.01, 4, bytes(range(32))


def volume(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs.float(), targets, reduction="none").flatten(1).mean(1)


class Volumes(Workload):
    """3-D images with a mask as target."""

    def data(self, device: torch.device, batch: int | None = None) -> tuple[Tensor, Tensor]:
        generator, n = torch.Generator().manual_seed(0), batch or self.batch
        x = torch.randn(n, *self.inputs, generator=generator)
        return x.to(device), (torch.rand(n, *self.inputs, generator=generator) > 0.5).float().to(device)


def unet3d(width: int, levels: int, size: int) -> nn.Module:
    from confide.nn import UNet

    return UNet((1, size, size, size), 1, width=width, levels=levels)


FULL = {
    "wrn16_4": WORKLOADS["wrn16_4"],
    "vit_b16": WORKLOADS["vit_b16"],
    "unet3d": Volumes(lambda: unet3d(16, 3, 64), volume, (1, 64, 64, 64), 16),
}
SMALL = {
    "small_cnn": Workload(lambda: ConvNet(16, (16, 32), 1, 4), classify, (3, 16, 16), 32, image=True),
    "small_transformer": Workload(lambda: Transformer(1, 64, 4, 128, 100), classify, (16,), 32, tokens=100),
    "small_unet3d": Volumes(lambda: unet3d(4, 2, 8), volume, (1, 8, 8, 8), 16),
}
# A transformer that FSDP2 cuts: layers, width, heads, hidden, vocabulary, tokens, entries of each process.
LARGE = {"full": (30, 4096, 32, 16384, 1000, 16, 16), "small": (3, 64, 2, 128, 100, 8, 8)}


class Clock:
    """Seconds of the device (events) or of the host between two marks."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Milliseconds."""
        return first.elapsed_time(last) if self.cuda else 1e3 * (last - first)


STEPS: dict[tuple[str, int], Any] = {}


def compiled_sums(name: str, work: Workload, batch: int, device: torch.device, compiled: bool) -> Any:
    """The clipped sums of one process's batch as a function, compiled once, and what it took."""
    if (name, batch) in STEPS:
        return STEPS[name, batch]
    STEPS.clear()
    torch._dynamo.reset()
    began = time.perf_counter()
    torch.manual_seed(0)
    model = work.make().to(device)
    model = model.to(memory_format=torch.channels_last) if work.image else model
    engine = FastClippingEngine(model, EngineOptions(engine="fast", physical_batch=batch, device=device.type))
    x, y = work.data(device, batch)
    count = batch // EACH
    units = torch.arange(batch, device=device) // EACH
    weights = torch.full((batch,), 1.0 / EACH, device=device)
    clips = torch.full((count,), CLIP, dtype=torch.float64, device=device)
    autocast = torch.bfloat16 if compiled else None
    step = CompiledStep(engine, work.loss, autocast=autocast, compiler=compiled, graphs=device.type == "cuda")

    def sums() -> list[Tensor]:
        return step.run(x, y, units, weights, clips, EACH).gradients

    sums()
    took, peak = time.perf_counter() - began, None
    if device.type == "cuda":  # memory of the launched step: what a recording keeps is not counted as allocated
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        sums()
        peak = torch.cuda.max_memory_allocated() / 2**20
    STEPS[name, batch] = sums, engine, took, peak
    return STEPS[name, batch]


def private_step(step: Any, engine: Any, count: int, ranks: Ranks, device: torch.device) -> Any:
    """One step as a function that returns marks: begin, sums there, exchange done, moved."""
    exchange, clock, steps = Exchange(ranks, engine.parameters), Clock(device), [0]

    def run() -> list[Any]:
        marks = [clock.mark()]
        sums = step()
        marks.append(clock.mark())
        noise = BlockNoise("default", KEY, steps[0], NOISE * CLIP, exchange.size)
        noisy = exchange(sums, noise.add)
        marks.append(clock.mark())
        with torch.no_grad():
            torch._foreach_add_(list(engine.parameters), noisy, alpha=-RATE / (count * ranks.world))
        marks.append(clock.mark())
        steps[0] += 1
        return marks

    return run, exchange.size


def communication(exchange_size: int, ranks: Ranks, device: torch.device, repeats: int) -> float:
    """Milliseconds of the two collectives alone, on values of the model's size."""
    if ranks.world == 1:
        return 0.0
    flat = torch.randn(exchange_size + -exchange_size % ranks.world, device=device)
    clock, times = Clock(device), []
    for _ in range(repeats + 3):
        ranks.together(lambda: None)
        first = clock.mark()
        flat = ranks.all_gather(ranks.reduce_scatter(flat) / ranks.world, out=flat)
        last = clock.mark()
        if clock.cuda:
            torch.cuda.synchronize()
        times.append(clock.between(first, last))
    return float(np.median(times[3:]))


def timed(run: Callable[[], list[Any]], device: torch.device, repeats: int, ranks: Ranks) -> dict[str, float]:
    """Median milliseconds of a step and of its parts, over steps that follow each other without waiting."""
    cuda = device.type == "cuda"
    run()
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(3 if cuda else 1):
        run()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    each = (time.perf_counter() - began) / (3 if cuda else 1)
    # a slow cell is repeated less, by all processes alike
    repeats = ranks.from_first(lambda: min(repeats, max(4, int(8 / each))))
    ranks.together(lambda: None)
    began = time.perf_counter()
    marks = [run() for _ in range(repeats)]
    if cuda:
        torch.cuda.synchronize()
    wall = 1e3 * (time.perf_counter() - began) / repeats
    clock = Clock(device)
    parts = np.array([[clock.between(m[i], m[i + 1]) for i in range(3)] for m in marks])
    whole = [clock.between(a[0], b[0]) for a, b in itertools.pairwise(marks)]
    out = {"ms": float(np.median(whole)), "wall_ms": wall}
    out |= dict(zip(("sums_ms", "exchange_ms", "update_ms"), np.median(parts, 0).tolist(), strict=True))
    if cuda:
        out["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 3) for name, value in out.items()}


def speed(name: str, work: Workload, kind: str, ranks: Ranks, device: torch.device, compiled: bool) -> dict[str, Any]:
    batch = work.batch if kind == "weak" else work.batch // ranks.world
    repeats = 30 if device.type == "cuda" else 5
    step, engine, first, peak = compiled_sums(name, work, batch, device, compiled)
    run, size = private_step(step, engine, batch // EACH, ranks, device)
    row = {"cell": "speed", "workload": name, "scaling": kind, "batch": batch * ranks.world, "parameters": size}
    row |= timed(run, device, repeats, ranks) | {"first_s": round(first, 2)}
    if peak is not None:
        row["peak_mb"] = round(peak, 3)
    row["communication_ms"] = round(communication(size, ranks, device, repeats), 3)
    row["entries_per_s"] = round(1e3 * row["batch"] / row["ms"], 2)
    return row


class Recorder(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.seen: list[Tensor] = []

    def step(self, closure: Any = None) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.seen.append(torch.cat([g.double().reshape(-1) for g in grads]).cpu())


class Nothing:
    """A source of no noise, so that what noise adds can be seen."""

    testing_only = True

    def add_normal(self, values: Any, *, scale: float) -> Any:
        return np.asarray(values)

    def margin(self, dimensions: int, *, scale: float, norm: int = 2) -> float:
        return 0.0


def update_variance(ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """The noise of whole private runs (with noise less without), against the plan; and who was drawn."""
    from confide import plan as make

    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, 200)
    x = torch.tensor(rng.normal(size=(int(counts.sum()), 16)), dtype=torch.float32)
    owners = [f"p{i:03d}" for i, k in enumerate(counts) for _ in range(k)]
    data = ContributorDataset(torch.utils.data.TensorDataset(x, x[:, 0]), owners)
    histogram = {int(k): int((counts == k).sum()) for k in np.unique(counts)}
    plan = make(histogram, epsilon=20.0, delta=1e-3, noise_multiplier=1.5, steps=20, strategy="contributor",
                clip_norm=0.7)  # fmt: skip
    seen, drawn = [], hashlib.sha256()
    for noise in ("default", Nothing()):
        torch.manual_seed(0)
        model = nn.Linear(16, 4000)
        optimizer = Recorder(model.parameters())
        run = PrivateRun(
            model, lambda out, y: out.square().mean(1) - y, optimizer, plan, data, noise=noise, run_key=KEY,
            options=EngineOptions(device=device.type), ranks=ranks,
        )  # fmt: skip
        for step in range(plan.steps):
            everybody = run._sampler.draw(step)
            drawn.update(everybody.entries.tobytes())
        for batch in run:
            run.step(run.loss(model(batch.inputs), batch.targets))
        seen.append(torch.stack(optimizer.seen) * plan.denominator)
    found = (seen[0] - seen[1]).numpy() / (plan.noise_multiplier * plan.clip_norm)
    error = (2.0 / found.size) ** 0.5
    return {
        "cell": "variance",
        "values": int(found.size),
        "variance_over_theory": round(float(found.var()), 5),
        "standard_error": round(float(error), 5),
        "drawn_sha256": drawn.hexdigest(),
    }


def large(size: str, ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """FSDP2: AdamW steps of a transformer cut into shards, in float32."""
    layers, width, heads, hidden, vocabulary, tokens, batch = LARGE[size]
    with torch.device("meta"):
        model = Transformer(layers, width, heads, hidden, vocabulary)
    engine = ShardedEngine(model, EngineOptions(engine="fast", physical_batch=batch))
    generator = torch.Generator(device).manual_seed(ranks.rank)

    def fill(name: str, rows: Tensor) -> None:
        if "norm" in name:
            rows.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            rows.zero_()
        else:
            rows.normal_(0.0, 0.02, generator=generator)

    shards = engine.shard(ranks, device, fill=fill)
    optimizer = torch.optim.AdamW(shards, lr=1e-4, foreach=False)
    count = sum(value.numel() for value in shards)
    draw = torch.Generator().manual_seed(7 + ranks.rank)
    x = torch.randint(0, vocabulary, (batch, tokens), generator=draw).to(device)
    y = torch.randint(0, 10, (batch,), generator=draw).to(device)
    units, weights = np.arange(batch) // EACH, np.full(batch, 1.0 / EACH)
    people, clock = batch // EACH, Clock(device)
    starts = engine.flat_starts()
    norms: list[float] = []

    def run() -> list[Any]:
        marks = [clock.mark()]
        with engine.capture():
            losses = classify(model(x), y)
        engine.add(losses, units, weights, np.full(people, CLIP))
        marks.append(clock.mark())
        total = engine.take()
        norms.extend(total.norms.tolist())
        noise = BlockNoise("default", KEY, len(norms), NOISE * CLIP, count)
        scale = people * ranks.world
        for number, start in enumerate(starts):  # one after the other: a list of both would be two gradients
            part = total.gradients[number]
            total.gradients[number] = (noise.add(part.reshape(-1), start) / scale).reshape(part.shape)
        engine.set_gradients(total.gradients)
        marks.append(clock.mark())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(clock.mark())
        return marks

    row = {"cell": "large", "parameters": count, "batch": batch * ranks.world, "precision": "fp32"}
    row["state_gb"] = round(16 * count / 2**30, 2)  # weights, gradient, two moments of four bytes
    row |= timed(run, device, 4 if device.type == "cuda" else 2, ranks)
    row["finite_norms"] = bool(np.isfinite(norms).all())
    return row


def work_of(arguments: argparse.Namespace, device: torch.device) -> list[tuple[str, Any, Any]]:
    """(name, what every process prepares, act) of every cell; what matters most comes first."""
    small = arguments.small

    def varied(ranks: Ranks) -> dict[str, Any]:
        return update_variance(ranks, device)

    def cut(ranks: Ranks) -> dict[str, Any]:
        STEPS.clear()
        return large("small" if small else "full", ranks, device)

    found: list[Any] = [("variance", None, varied), ("large", None, cut)]
    for kind in ("weak", "strong"):
        for name, work in (SMALL if small else FULL).items():

            def ready(name: str = name, work: Workload = work) -> None:
                compiled_sums(name, work, work.batch, device, not small)

            def act(ranks: Ranks, name: str = name, work: Workload = work, kind: str = kind) -> dict[str, Any]:
                return speed(name, work, kind, ranks, device, not small)

            found.append((f"{name}-{kind}", ready if kind == "weak" else None, act))
    return found


def parts_of(whole: Ranks, worlds: list[int]) -> dict[int, Ranks]:
    """Groups of the first 1, 2, 4, ... processes."""
    found = {}
    for world in worlds:
        if world == 1:
            found[world] = Ranks()
        elif world == whole.world:
            found[world] = whole
        else:
            members = list(range(world))
            group, messages = dist.new_group(members), dist.new_group(members, backend="gloo")
            found[world] = Ranks(group, messages) if whole.rank < world else Ranks()
    return found


def process(arguments: argparse.Namespace) -> None:
    """One process: all cells that it has a part in."""
    name = "cpu" if arguments.small else "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    whole, device = join(name), torch.device(name)
    worlds = [int(world) for world in arguments.worlds.split(",")]
    parts = parts_of(whole, worlds)
    known = arguments.rows.read_text().splitlines() if arguments.rows.exists() else []
    done = {(row["name"], row["world"]) for row in map(json.loads, known) if "error" not in row}
    done = set(whole.from_first(lambda: sorted(done)))
    began = time.monotonic()
    for cell, ready, act in work_of(arguments, device):
        for world in worlds:
            # one process has nothing to divide; shards are shown on all devices
            left_out = world == 1 if cell.endswith("strong") else cell == "large" and world != max(worlds)
            left_out = left_out or (cell == "large" and world == 1)
            late = whole.from_first(lambda: time.monotonic() - began > arguments.seconds)
            if (cell, world) in done or arguments.only not in cell or left_out or late:
                continue
            row: dict[str, Any] = {}
            try:
                if ready is not None:
                    ready()
                if whole.rank < world:
                    row = act(parts[world])
            except Exception as error:  # a cell that fails is a row that says so
                traceback.print_exc()
                row = {"cell": cell, "error": f"{type(error).__name__}: {error}"[:1500]}
            rows = [row]
            if whole.world > 1:
                rows = [{} for _ in range(whole.world)]
                dist.all_gather_object(rows, row, group=whole._messages)
            finish(arguments, whole, device, cell, world, rows)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    leave()


def finish(
    arguments: argparse.Namespace, whole: Ranks, device: torch.device, cell: str, world: int, rows: list[dict[str, Any]]
) -> None:
    """Write the row of a cell: the slowest process counts."""
    if not whole.first:
        return
    failed = [other for other in rows if "error" in other]
    row = failed[0] if failed else rows[0]
    times = [other["ms"] for other in rows if "ms" in other]
    if times and not failed:
        row = {**row, "ms": max(times), "ms_by_process": times}
        row["entries_per_s"] = round(1e3 * row["batch"] / row["ms"], 2)
    row |= {
        "name": cell,
        "world": world,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "backend": dist.get_backend() if world > 1 else "none",
        "noise": "ChaCha20 by position, float32" if device.type == "cuda" else "numpy by position, float64",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    with arguments.rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def main() -> None:
    """Measure every number of processes, then write results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="CPU and gloo, small models")
    parser.add_argument("--worlds", help="numbers of processes, for example 1,2; default: 1, 2, 4, 8 as devices allow")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after this many seconds")
    parser.add_argument("--report", action="store_true", help="write results.json and the page only")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    if arguments.process:
        process(arguments)
        return
    if not arguments.report:
        most = 2 if arguments.small else torch.cuda.device_count()
        worlds = arguments.worlds or ",".join(str(world) for world in (1, 2, 4, 8) if world <= most)
        passed = ["--process", "--rows", str(arguments.rows), "--only", arguments.only, "--worlds", worlds]
        passed += ["--seconds", str(arguments.seconds)] + (["--small"] if arguments.small else [])
        largest = max(int(world) for world in worlds.split(","))
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(largest)]
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        subprocess.run([sys.executable, *start, __file__, *passed], check=False, env=environment)
    if arguments.rows == ROWS:
        from report import write

        write(ROWS, RESULTS, ROOT / "docs" / "scaling.md")


if __name__ == "__main__":
    main()
