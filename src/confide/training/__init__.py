"""Private learning on PyTorch: clipping engine, run and loop, contributor data sets, checkpoints, optimisers."""

from confide.training.batch import Batch
from confide.training.checkpoint import delete_checkpoint, read_checkpoint
from confide.training.dataset import ContributorDataset
from confide.training.distributed import Ranks, join, leave
from confide.training.distributed.run import ShardedRun
from confide.training.engine import ClippedSum, ClippingEngine, EngineOptions
from confide.training.methods import (
    SGLD,
    Augmentation,
    Averaging,
    BiasAware,
    Clipping,
    Ensemble,
    Methods,
    PreviousDirection,
    ShiftFlip,
    Snapshots,
    de_2022,
)
from confide.training.noise import noise_seconds
from confide.training.optimizers import DPAdam, make_optimizer
from confide.training.result import TrainingResult
from confide.training.run import PrivateRun
from confide.training.whole_run import fit

__all__ = [
    "SGLD",
    "Augmentation",
    "Averaging",
    "Batch",
    "BiasAware",
    "ClippedSum",
    "Clipping",
    "ClippingEngine",
    "ContributorDataset",
    "DPAdam",
    "EngineOptions",
    "Ensemble",
    "Methods",
    "PreviousDirection",
    "PrivateRun",
    "Ranks",
    "ShardedRun",
    "ShiftFlip",
    "Snapshots",
    "TrainingResult",
    "de_2022",
    "delete_checkpoint",
    "fit",
    "join",
    "leave",
    "make_optimizer",
    "noise_seconds",
    "read_checkpoint",
]
