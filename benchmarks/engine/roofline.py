"""Where the time of a step goes, kernel by kernel, beside what the machine could do: build/engine/roofline.json.

python benchmarks/engine/roofline.py --device cuda [--out FILE] [--only wrn16_4,transformer] [--kinds plain,4,nih]

For each workload the compiled ordinary step and the compiled private step (bfloat16) run under the profiler of torch;
times are sums over kernels of one step (mean of three). The machine's own two ceilings (a copy, a matrix product) are
measured first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(HERE), str(ROOT / "src")]
from run import measure, ours, plain_step  # noqa: E402
from workloads import GPU, WORKLOADS  # noqa: E402


def ceilings(device: torch.device) -> dict[str, float]:
    """TB/s of a copy (read and write counted) and TFLOP/s of a bf16 matrix product."""
    big = torch.randn(2**28 if device.type == "cuda" else 2**22, device=device)
    into = torch.empty_like(big)
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    copy, product = measure(lambda: into.copy_(big), device, 5)["ms"], measure(lambda: a @ b, device, 5)["ms"]
    return {"copy_tb_s": 8 * big.numel() / copy / 1e9, "bf16_tflop_s": 2 * side**3 / product / 1e9}


def kernels(step: Any, device: torch.device, repeats: int = 3) -> list[dict[str, Any]]:
    """Time in ms and number of launches of every kernel in one step."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=kinds) as found:
        for _ in range(repeats):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    out = []
    for row in found.key_averages():
        if device.type == "cuda":
            if str(row.device_type).endswith("CUDA"):
                out.append((row.self_device_time_total, row.count, row.key))
        else:
            out.append((row.self_cpu_time_total, row.count, row.key))
    total = sorted(out, reverse=True)[:90]
    return [{"ms": round(t / 1e3 / repeats, 4), "count": n / repeats, "name": name[:160]} for t, n, name in total]


def main() -> None:
    """Profile what is asked for; write after every workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=",".join(GPU))
    parser.add_argument("--kinds", default="plain,4,nih")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "engine" / "roofline.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    cuda = device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {"torch": torch.__version__, "ceilings": ceilings(device), "steps": []}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for workload in arguments.only.split(","):
        work = WORKLOADS[workload]
        x, y = work.data(device, arguments.batch)
        for kind in arguments.kinds.split(","):
            torch._dynamo.reset()
            torch.manual_seed(0)
            model = work.make().to(device)
            model = model.to(memory_format=torch.channels_last) if work.image else model
            start = time.perf_counter()
            if kind == "plain":
                step = plain_step(model, work, x, y, "bf16", cuda)
            else:
                step = ours(model, work, x, y, kind, "fast", "bf16", cuda)
            row: dict[str, Any] = {"workload": workload, "kind": kind, **measure(step, device, arguments.repeats)}
            row["kernels"] = kernels(step, device)
            row["busy_ms"] = round(sum(k["ms"] for k in row["kernels"]), 3)
            result["steps"].append(row)
            arguments.out.write_text(json.dumps(result, indent=1))
            seen = {name: row[name] for name in ("workload", "kind", "ms", "busy_ms", "first_s")}
            print(json.dumps({**seen, "wall_s": round(time.perf_counter() - start, 1)}), flush=True)
            step = model = None


if __name__ == "__main__":
    main()
