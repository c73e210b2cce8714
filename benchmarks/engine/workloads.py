"""The models and random batches that the engine is timed on; no layer mixes the entries of a batch."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

COUNTS = Path(__file__).parents[2] / "src" / "confide" / "data" / "sets" / "nih14_entry_counts.csv"


class Block(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut."""

    def __init__(self, before: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, width)
        same = before == width and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ConvNet(nn.Module):
    """ResNet-like: stem, stages of blocks, mean, linear head."""

    def __init__(self, stem: int, widths: tuple[int, ...], blocks: int, groups: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.GroupNorm(min(groups, stem // 4), stem)
        layers, before = [], stem
        for stage, width in enumerate(widths):
            for number in range(blocks):
                layers.append(Block(before, width, 2 if stage and not number else 1, groups))
                before = width
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*[Layer(width, heads, hidden) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))).mean(1))


class VisionTransformer(nn.Module):
    """ViT-B/16 at 224 with mean pooling; positions are an embedding looked up for every entry."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, patch: int = 16, size: int = 224) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Embedding((size // patch) ** 2, width)
        self.blocks = nn.Sequential(*[Layer(width, heads, 4 * width) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = h + self.position(torch.arange(h.shape[1], device=x.device).expand(len(x), -1))
        return self.head(self.norm(self.blocks(h)).mean(1))


class Double(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class UNet(nn.Module):
    """Four levels, base width 32, nearest-neighbour upsampling; one logit for each pixel."""

    def __init__(self, base: int = 32, levels: int = 4) -> None:
        super().__init__()
        widths = [base * 2**i for i in range(levels)]
        self.down = nn.ModuleList([Double(1 if i == 0 else widths[i - 1], w) for i, w in enumerate(widths)])
        self.up = nn.ModuleList([Double(widths[i] + widths[i - 1], widths[i - 1]) for i in range(levels - 1, 0, -1)])
        self.head = nn.Conv2d(base, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        kept.pop()
        for level in self.up:
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), kept.pop()], 1))
        return self.head(x)


def classify(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.float(), targets, reduction="none")


def segment(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs.float(), targets, reduction="none").flatten(1).mean(1)


@dataclass(frozen=True)
class Workload:
    """A model, its loss and the size of its batch."""

    make: Any
    loss: Any
    inputs: tuple[int, ...]
    batch: int
    tokens: int = 0
    image: bool = False

    def data(self, device: torch.device, batch: int | None = None) -> tuple[Tensor, Tensor]:
        """Random entries on the device."""
        generator, n = torch.Generator().manual_seed(0), batch or self.batch
        if self.tokens:
            x = torch.randint(0, self.tokens, (n, *self.inputs), generator=generator)
        else:
            x = torch.randn(n, *self.inputs, generator=generator)
        if self.loss is segment:
            y = torch.randint(0, 2, (n, *self.inputs), generator=generator).float()
        else:
            y = torch.randint(0, 10, (n,), generator=generator)
        x = x.to(device)
        return (x.contiguous(memory_format=torch.channels_last) if self.image else x), y.to(device)


def mlp() -> nn.Module:
    widths = (784, 1024, 1024, 1024, 10)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


WORKLOADS = {
    "wrn16_4": Workload(lambda: ConvNet(16, (64, 128, 256), 2, 16), classify, (3, 32, 32), 512, image=True),
    "transformer": Workload(lambda: Transformer(6, 768, 12, 3072, 8000), classify, (128,), 64, tokens=8000),
    "unet": Workload(UNet, segment, (1, 256, 256), 32, image=True),
    "vit_b16": Workload(VisionTransformer, classify, (3, 224, 224), 64, image=True),
    "small_cnn": Workload(lambda: ConvNet(32, (32, 64, 128), 1, 8), classify, (3, 32, 32), 64, image=True),
    "small_transformer": Workload(lambda: Transformer(2, 256, 4, 1024, 1000), classify, (64,), 32, tokens=1000),
    "mlp": Workload(mlp, classify, (784,), 64),
}
GPU = ("wrn16_4", "transformer", "unet", "vit_b16")
CPU = ("small_cnn", "small_transformer", "mlp")


def units_of(kind: str, entries: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Unit of each entry: contributors of 1, of 4, or drawn from the counts of ChestX-ray14 until the batch is full."""
    if kind != "nih":
        return np.arange(entries, dtype=np.int64) // int(kind)
    with COUNTS.open() as file:
        rows = [(int(r["entries"]), int(r["contributors"])) for r in csv.DictReader(file)]
    sizes, weight = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=float)
    drawn = np.random.default_rng(seed).choice(sizes, entries, p=weight / weight.sum())
    return np.repeat(np.arange(entries), drawn)[:entries].astype(np.int64)
