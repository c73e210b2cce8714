"""The runner of a study file, the `Trainer` facade, and `load` for released models."""

from confide.studies.evaluate_model import Evaluated, evaluate_model
from confide.studies.file import Study, load_study, parse_study
from confide.studies.loaded import LoadedModel, load
from confide.studies.rehearse import rehearse_study
from confide.studies.run import run_study
from confide.studies.trainer import Trainer
from confide.studies.watch import Outcome, Price, Watcher

__all__ = [
    "Evaluated",
    "LoadedModel",
    "Outcome",
    "Price",
    "Study",
    "Trainer",
    "Watcher",
    "evaluate_model",
    "load",
    "load_study",
    "parse_study",
    "rehearse_study",
    "run_study",
]
