"""Private learning on PyTorch: clipping engine, run and loop, contributor data sets, checkpoints, optimisers."""

from confide.training.checkpoint import delete_checkpoint, read_checkpoint
from confide.training.dataset import ContributorDataset
from confide.training.distributed import Ranks, join, leave
from confide.training.engine import ClippedSum, ClippingEngine, EngineOptions
from confide.training.noise import noise_seconds
from confide.training.optimizers import DPAdam, make_optimizer
from confide.training.result import TrainingResult
from confide.training.run import Batch, PrivateRun, fit

__all__ = [
    "Batch",
    "ClippedSum",
    "ClippingEngine",
    "ContributorDataset",
    "DPAdam",
    "EngineOptions",
    "PrivateRun",
    "Ranks",
    "TrainingResult",
    "delete_checkpoint",
    "fit",
    "join",
    "leave",
    "make_optimizer",
    "noise_seconds",
    "read_checkpoint",
]
