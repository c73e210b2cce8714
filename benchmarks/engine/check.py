"""Compare the compiled step on this device with the exact engine in float64 on the same model: norms and sums.

python benchmarks/engine/check.py [cuda|cpu] [repeated,convolutions,transformer,unet]
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(HERE), str(ROOT / "src")]
from workloads import ConvNet, Transformer, UNet, Workload, classify, segment  # noqa: E402

from confide.training import ClippingEngine, EngineOptions  # noqa: E402
from confide.training.engine.fast.compiled import CompiledStep  # noqa: E402

SMALL = {
    "convolutions": Workload(lambda: ConvNet(16, (32, 64), 1, 8), classify, (3, 16, 16), 16, image=True),
    "transformer": Workload(lambda: Transformer(1, 64, 4, 128, 50), classify, (9,), 16, tokens=50),
    "unet": Workload(lambda: UNet(16, 3), segment, (1, 32, 32), 16, image=True),
}
UNITS = {"4": np.repeat(np.arange(4), 4), "ragged": np.repeat(np.arange(5), [1, 7, 2, 5, 1]), "1": np.arange(16)}


def plain_error(model, high, work, x, y, loss, autocast):  # type: ignore[no-untyped-def]
    """Error of ordinary backward passes at this precision, entry by entry; no private step can be expected below it."""
    worst = 0.0
    for i in range(len(x)):
        with torch.autocast(x.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            low = work.loss(model(x[i : i + 1]), y[i : i + 1]).sum()
        a, b = (torch.autograd.grad(v, list(m.parameters())) for v, m in ((low, model), (loss([i]).sum(), high)))
        a, b = (torch.cat([g.double().reshape(-1) for g in v]) for v in (a, b))
        worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


def repeated(device: torch.device, times: int = 50) -> bool:
    """The kernels that fetch boxes, on large batches again and again: the same bits each time."""
    from confide.training.engine.fast import _triton_convolution as kernel

    fine = True
    for channels, outputs, side in ((16, 64, 32), (64, 64, 32), (128, 128, 16), (256, 256, 8), (32, 32, 256)):
        entries = 512 if side < 256 else 32
        x, y = (torch.randn(entries, c, side, side, device=device).bfloat16() for c in (channels, outputs))
        x, y = (v.contiguous(memory_format=torch.channels_last) for v in (x, y))
        sizes = torch.tensor([1] * (entries // 4) + [entries // 4, entries // 2], device=device)
        offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
        shape, window = [outputs, channels, 3, 3], [1, 1, 1, 1, 1, 1]
        tile = kernel.convolution_tile(x, y, shape, window)
        plain = kernel.convolution_tile(x, y, shape, window, boxes=False)
        want = kernel._convolution(x, y, offsets, shape, window, entries, plain)[0].double()
        first = kernel._convolution(x, y, offsets, shape, window, entries, tile)[0]
        same = all(
            torch.equal(kernel._convolution(x, y, offsets, shape, window, entries, tile)[0], first)
            for _ in range(times)
        )
        off = float((first.double() - want).norm() / want.norm())
        print(
            json.dumps({"repeated": [channels, outputs, side], "tile": tile, "same_bits": same, "off": off}), flush=True
        )
        fine = fine and same and off < 1e-2
    return fine


def products(device: torch.device, times: int = 50) -> bool:
    """Products of equal units whose rows are no whole number of steps, again and again: right, and the same bits."""
    from confide.training.engine.fast import _triton as kernel

    fine = True
    for rows, width, height in ((788, 768, 2304), (512, 3072, 768), (100, 136, 264), (196, 768, 768)):
        a, g = (torch.randn(16 * rows, n, device=device).bfloat16() for n in (width, height))
        large = kernel._large(a, g, 16)
        used = kernel._even(a, g, rows, large)
        want = torch.bmm(g.view(16, rows, -1).transpose(1, 2).double(), a.view(16, rows, -1).double())
        first, square = kernel._even_products(a, g, 16, large)
        same = all(torch.equal(kernel._even_products(a, g, 16, large)[0], first) for _ in range(times))
        off = float((first.double() - want).norm() / want.norm())
        norms = float((square / first.double().square().sum((1, 2)) - 1).abs().max())
        print(json.dumps({"products": [rows, width, height], "used": used, "same_bits": same, "off": off, "n": norms}))
        fine = fine and used and same and off < 1e-2 and norms < 1e-5
    return fine


def main() -> None:
    """Print one line a case; exit 1 if one is off."""
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    chosen = sys.argv[2].split(",") if len(sys.argv) > 2 else ["repeated", *SMALL]
    worst = device.type != "cuda" or "repeated" not in chosen or (repeated(device) and products(device))
    for name, work in SMALL.items():
        if name not in chosen:
            continue
        torch.manual_seed(1)
        model = work.make().to(device)
        if work.image:
            model = model.to(memory_format=torch.channels_last)
        x, y = work.data(device)
        high = copy.deepcopy(model).double()
        wide, target = (x if work.tokens else x.double()), (y.double() if y.is_floating_point() else y)
        for kind, unit in UNITS.items():
            count = int(unit[-1]) + 1
            weight = 1.0 / np.bincount(unit)[unit]
            exact = ClippingEngine(high, EngineOptions(engine="exact", physical_batch=16))

            def loss(rows, high=high, wide=wide, target=target):  # type: ignore[no-untyped-def]
                out = high(wide[rows])
                if target.is_floating_point():
                    raw = torch.nn.functional.binary_cross_entropy_with_logits
                    return raw(out, target[rows], reduction="none").flatten(1).mean(1)
                return torch.nn.functional.cross_entropy(out, target[rows], reduction="none")

            want = exact.clipped_sum(loss, unit, weight, np.full(count, 1e9))
            clips = want.norms * np.linspace(0.3, 1.5, count)
            want = exact.clipped_sum(loss, unit, weight, clips)
            for precision, tf32, autocast, limit in (
                ("fp32", False, None, 2e-4),
                ("tf32", True, None, 1e-2),
                ("bf16", True, torch.bfloat16, 2e-1),
            ):
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
                engine = ClippingEngine(model, EngineOptions(engine="fast"))
                compiler = precision == "bf16" and device.type == "cuda" and kind == "ragged"
                step = CompiledStep(engine, work.loss, autocast=autocast, compiler=compiler)
                got = step.run(
                    x, y, torch.as_tensor(unit, device=device), torch.as_tensor(weight, device=device).float(),
                    torch.as_tensor(clips, device=device), None if kind == "ragged" else 16 // count,
                )  # fmt: skip
                a = torch.cat([g.double().reshape(-1) for g in got.gradients])
                b = torch.cat([g.reshape(-1) for g in want.gradients])
                norms = np.abs(got.norms.cpu().numpy() / want.norms - 1).max()
                off = float((a - b).norm() / b.norm())
                own = plain_error(model, high, work, x, y, loss, autocast)
                good = norms < max(limit, own) and off < max(limit, 3 * own)
                worst = worst and good
                row = {
                    "case": name,
                    "units": kind,
                    "precision": precision,
                    "norms": float(norms),
                    "sum": off,
                    "plain": own,
                }
                print(json.dumps({**row, "good": bool(good)}), flush=True)
    sys.exit(0 if worst else 1)


if __name__ == "__main__":
    main()
