"""Time one private step beside its non-private twin, cell by cell: results.json here, the page docs/engine.md from it.

    python benchmarks/engine/run.py --device cuda      # every GPU cell that is missing in build/engine/rows.jsonl
    python benchmarks/engine/run.py --device cpu       # the CPU cells
    python benchmarks/engine/run.py --report           # results.json and the page only

A cell is one process: one model, one precision; it times the ordinary step (forward, backward, SGD), then the private
one (forward, backward, norms, clipping, noise on the device, SGD) for contributors of 1, of 4 and ragged ones, with the
same compile mode. Peers run in cells of their own, each with its twin, and are left out where not installed.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(HERE), str(ROOT / "src")]
from workloads import CPU, GPU, WORKLOADS, units_of  # noqa: E402

from confide.training.host_memory import kept_pages  # noqa: E402

ROWS, RESULTS = ROOT / "build" / "engine" / "rows.jsonl", HERE / "results.json"
NOISE, CLIP, RATE = 1.0, 1.0, 0.01
# On a CPU the noise costs as much as the step of a small net: it is timed apart (`noise_ms`).
NOISY = False
KINDS = ("4", "nih", "1")


def cells(device: str) -> list[tuple[str, str, str]]:
    """(workload, precision, engine) of every cell."""
    if device == "cpu":
        return [(w, "fp32", e) for w in CPU for e in ("fast", "compiled", "exact", "vmap", "hooks", "ghost", "opake")]
    ours = [(w, p, "fast") for p in ("bf16", "tf32") for w in GPU]
    peers = [(w, p, e) for p in ("tf32", "bf16") for w in GPU[:2] for e in ("vmap_compile", "hooks", "ghost", "opake")]
    return ours + peers


def measure(step: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Median wall time in ms of a step after warm-up, peak memory in MB, seconds to the end of the first step."""
    cuda = device.type == "cuda"

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    start = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - start
    for _ in range(4 if cuda else 2):
        step()
    wait()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times, used = [], []
    for _ in range(repeats):
        wait()
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        wait()
        times.append(time.perf_counter() - wall)
        used.append(time.process_time() - cpu)
    out = {"ms": 1e3 * float(np.median(times)), "first_s": first, "cpu_ms": 1e3 * float(np.min(used))}
    if cuda:
        out["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 3) for name, value in out.items()}


def alternated(
    plain: Callable[[], Any], step: Callable[[], Any], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Both on a CPU, one after the other again and again: what else the machine does then falls on both alike.

    Medians of wall time and of the process's CPU time in ms.
    """
    both = (plain, step)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for run in both:
        run()
    times: list[list[tuple[float, float]]] = [[], []]
    for _ in range(repeats):
        for seen, run in zip(times, both, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seen.append((time.perf_counter() - wall, time.process_time() - cpu))
    found = [np.round(1e3 * np.median(np.array(seen), 0), 3).tolist() for seen in times]
    rows = [{"ms": ms, "cpu_ms": cpu} for ms, cpu in found]
    return rows[0], {**rows[1], "first_s": round(first, 3)}


def plain_step(model: Any, work: Any, x: Any, y: Any, precision: str, compiled: bool) -> Callable[[], None]:
    """The twin: the same model, data, precision and compile mode, without privacy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def mean(x: Any, y: Any) -> Any:
        with lowered(x, precision):
            return work.loss(model(x), y).mean()

    run = torch.compile(mean, dynamic=False) if compiled else mean

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        run(x, y).backward()
        optimizer.step()

    return step


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """The same step recorded once and replayed (a CUDA graph)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def mover(parameters: list[Any]) -> Callable[[list[Any], float], None]:
    """Noise and division as `PrivateRun` does them (on a GPU by ChaCha20 on the device), then SGD."""
    from confide.training.device_noise import add_noise
    from confide.training.noise import keyed_noise

    optimizer, made = torch.optim.SGD(parameters, lr=RATE), itertools.count()

    def move(sums: list[Any], denominator: float) -> None:
        step = next(made)
        with torch.no_grad():
            if sums[0].device.type == "cuda":
                add_noise(sums, step.to_bytes(32, "little"), scale=NOISE * CLIP, denominator=denominator)
            elif NOISY:
                flat = torch.cat([g.reshape(-1) for g in sums]).numpy()
                source = keyed_noise("default", bytes(32), step)
                noisy = torch.from_numpy(source.add_normal(flat, scale=NOISE * CLIP)).float().div_(denominator)
                parts = noisy.split([g.numel() for g in sums])
                sums = [part.view(g.shape) for part, g in zip(parts, sums, strict=True)]
            # else: the pass that adds noise divides as well, and is timed apart
        for value, grad in zip(parameters, sums, strict=True):
            value.grad = grad.to(value.dtype).view(value.shape)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return move


def ours(model: Any, work: Any, x: Any, y: Any, kind: str, engine_name: str, precision: str, compiled: bool) -> Any:
    """One private step of this library: noise and update included."""
    from confide.training import ClippingEngine, EngineOptions
    from confide.training.engine.fast.compiled import CompiledStep
    from confide.training.engine.fast.whole import precise

    engine: Any = ClippingEngine(model, EngineOptions(physical_batch=len(x), device=x.device.type, engine=engine_name))
    unit = units_of(kind, len(x))
    count = int(unit[-1]) + 1
    weight = 1.0 / np.bincount(unit)[unit]
    if not compiled:
        clips, move = np.full(count, CLIP), mover(engine.parameters)

        def eager() -> None:
            with engine.capture():
                losses = work.loss(model(x), y)
            engine.add(losses, unit, weight, clips)
            move([g.to(torch.float32) for g in engine.take(native=True).gradients], count)

        return eager
    each = None if kind == "nih" else int(kind)
    move = mover(engine.parameters)
    step = CompiledStep(engine, work.loss, autocast=torch.bfloat16 if precision == "bf16" else None)
    units = torch.as_tensor(unit, device=x.device)
    weights = torch.as_tensor(weight, dtype=torch.float32, device=x.device)
    limits = torch.full((count,), CLIP, dtype=torch.float64, device=x.device)

    def private() -> None:
        with precise(precision):
            found = step.run(x, y, units, weights, limits, each)
        move(found.gradients, count)

    private.record = step.record  # type: ignore[attr-defined]
    return private


def lowered(x: Any, precision: str) -> Any:
    """The precision of the forward pass, the same for everybody."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")


def vmap_step(model: Any, work: Any, x: Any, y: Any, kind: str, precision: str, compiled: bool) -> Any:
    """torch.func: vmap of grad over contributors of equal size."""
    from torch.func import functional_call, grad, vmap

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    each = int(kind)
    xs, ys = (v.reshape(-1, each, *v.shape[1:]) for v in (x, y))

    def loss(values: Any, x: Any, y: Any) -> Any:
        with lowered(x, precision):
            return work.loss(functional_call(model, values, (x,)), y).mean()

    def clipped(values: Any, x: Any, y: Any) -> Any:
        found = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(values, x, y)
        norm = sum(g.flatten(1).square().sum(1) for g in found.values()).sqrt()
        factor = (CLIP / norm.clamp_min(1e-12)).clamp_max(1.0)
        return {name: torch.einsum("b,b...->...", factor, g) for name, g in found.items()}

    run = torch.compile(clipped, dynamic=False) if compiled else clipped
    move = mover([torch.nn.Parameter(value) for value in parameters.values()])
    return lambda: move(list(run(parameters, xs, ys).values()), len(xs))


def opacus_step(model: Any, work: Any, x: Any, y: Any, mode: str, precision: str) -> Any:
    """Opacus (single entries only)."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x.cpu(), y.cpu()), batch_size=len(x))
    noise = NOISE if NOISY or x.device.type == "cuda" else 0.0
    made = PrivacyEngine(accountant="rdp").make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=RATE), data_loader=loader,
        noise_multiplier=noise, max_grad_norm=CLIP, poisson_sampling=False, grad_sample_mode=mode,
        criterion=torch.nn.CrossEntropyLoss(),
    )  # fmt: skip
    wrapped, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else torch.nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        with lowered(x, precision):
            loss = criterion(wrapped(x), y)
        loss.backward()
        optimizer.step()

    return step


def opake_step(model: Any, work: Any, x: Any, y: Any, kind: str, precision: str) -> Any:
    """opake: clipped gradients of entries, or of contributors of equal size, as a function."""
    from opake.dpsgd.clipping import clipped_grad
    from torch.func import functional_call

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    xs, ys = (v.reshape(-1, int(kind), *v.shape[1:]) for v in (x, y))

    def loss(values: Any, x: Any, y: Any) -> Any:
        with lowered(x, precision):
            return work.loss(functional_call(model, values, (x,)), y).mean()

    run, state = clipped_grad(loss, clipping_norm=CLIP, batch_argnums=(1, 2), normalize_by=1.0)
    move = mover([torch.nn.Parameter(value) for value in parameters.values()])
    held = [state]

    def step() -> None:
        sums, held[0] = run(parameters, xs, ys, state=held[0])
        values = getattr(sums, "pytree", sums)
        move([values[name].contiguous() for name in parameters], len(xs))

    return step


def cell(
    workload: str, precision: str, engine: str, device_name: str, kinds: tuple[str, ...] = KINDS, warm: bool = False
) -> list[dict[str, Any]]:
    """Run one cell; every row carries the twin's figures. `warm` compiles only."""
    device, work = torch.device(device_name), WORKLOADS[workload]
    cuda = device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    mine = engine in ("fast", "exact", "compiled")
    compiled = engine == "compiled" or (cuda and engine in ("fast", "vmap_compile"))
    repeats = int(os.environ.get("CONFIDE_REPEATS", "30" if cuda else "7"))
    torch.manual_seed(0)

    def fresh() -> Any:
        model = work.make().to(device)
        return model.to(memory_format=torch.channels_last) if work.image else model

    x, y = work.data(device)
    plain = plain_step(fresh(), work, x, y, precision, compiled or cuda)
    if warm and "4" in kinds:
        plain()
    twin = {} if warm or not cuda else measure(plain, device, repeats)
    if cuda and not warm:
        try:
            twin["graph_ms"] = measure(graphed(plain), device, repeats)["ms"]
        except RuntimeError as error:
            print(f"no graph of the ordinary step: {error}"[:200], flush=True)
    plain = plain if not cuda else None
    rows = []
    equal = engine in ("vmap", "vmap_compile", "opake")  # contributors of equal size only
    for kind in kinds if mine else ("4", "1") if equal else ("1",):
        torch._dynamo.reset()
        model = fresh()
        row = {"workload": workload, "precision": precision, "engine": engine, "contributors": kind, "batch": len(x)}
        try:
            if mine:
                step = ours(model, work, x, y, kind, "exact" if engine == "exact" else "fast", precision, compiled)
            elif engine.startswith("vmap"):
                step = vmap_step(model, work, x, y, kind, precision, compiled)
            elif engine == "opake":
                step = opake_step(model, work, x, y, kind, precision)
            else:
                step = opacus_step(model, work, x, y, engine, precision)
            if warm:
                step()
                continue
            if cuda:
                row |= measure(step, device, repeats)
            else:
                with kept_pages(device):  # as `PrivateRun` does; the twin and the peers gain from it too
                    twin, timed = alternated(plain, step, repeats)
                row |= timed
            if cuda and hasattr(step, "record"):
                step.record()
                row["graph_ms"] = measure(step, device, repeats)["ms"]
        except Exception as error:  # a peer that fails is a row that says so
            row["error"] = f"{type(error).__name__}: {error}"[:2000]
        row |= {f"plain_{name}": value for name, value in twin.items()}
        row |= {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k not in ("device", "torch", "date")}), flush=True)
        if "noise_ms" not in twin and not cuda and mine:
            source_values = np.zeros(sum(value.numel() for value in model.parameters()))
            from confide.training.noise import keyed_noise

            source = keyed_noise("default", bytes(32), 0)
            start = time.process_time()
            source.add_normal(source_values, scale=1.0)
            source_values /= len(x)
            row["noise_ms"] = round(1e3 * (time.process_time() - start), 3)
        step = model = None
    return rows


def warm_up(arguments: argparse.Namespace, names: list[tuple[str, str, str]], kinds: tuple[str, ...]) -> None:
    """Fill the compiler's cache, one process for every step, so that the timed processes start at once."""
    command = [sys.executable, __file__, "--device", arguments.device, "--rows", os.devnull, "--warm"]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    chosen = [name for name in names if name[2] == "fast" and arguments.only in "-".join(name)]
    running = [
        subprocess.Popen([*command, "--kinds", kind, "--cell", *name], env=environment)
        for name in chosen
        for kind in kinds
    ]
    for process in running:
        process.wait()


def main() -> None:
    """Run what is missing, then write results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--cell", nargs=3)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after this many seconds")
    parser.add_argument("--kinds", default=",".join(KINDS), help="units to time")
    parser.add_argument("--warm", action="store_true", help="compile every cell first, all at the same time")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    kinds = tuple(arguments.kinds.split(","))
    if arguments.cell:
        rows = cell(*arguments.cell, arguments.device, kinds, arguments.warm)
        with arguments.rows.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return
    if arguments.device:
        known = arguments.rows.read_text().splitlines() if arguments.rows.exists() else []
        done = {(r["workload"], r["precision"], r["engine"]) for r in map(json.loads, known)}
        start = time.monotonic()
        if arguments.warm:
            warm_up(arguments, [name for name in cells(arguments.device) if name not in done], kinds)
        for name in cells(arguments.device):
            if name in done or arguments.only not in "-".join(name) or time.monotonic() - start > arguments.seconds:
                continue
            command = [sys.executable, __file__, "--device", arguments.device, "--rows", str(arguments.rows)]
            subprocess.run([*command, "--kinds", arguments.kinds, "--cell", *name], check=False, env=os.environ)
    if arguments.report:
        from report import write

        write(arguments.rows, RESULTS, ROOT / "docs" / "engine.md")


if __name__ == "__main__":
    main()
