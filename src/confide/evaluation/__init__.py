"""What a result is worth: discrimination and calibration on held-out people, with honest intervals.

`evaluate` gives exact figures with bootstrap intervals over contributors; they are internal. `paid_metrics` gives noisy
ones that may leave, charged to the people they were measured on.
"""

from confide.evaluation.bootstrap import METRICS, Estimate, evaluate, per_contributor
from confide.evaluation.calibration import NullEce, nll, null_ece, selective_curve
from confide.evaluation.fairness import Fairness, Group, fairness, gap_correlation
from confide.evaluation.groups import GroupRule, comorbidity
from confide.evaluation.metrics import (
    accuracy,
    auprc,
    auroc,
    brier,
    ece,
    mcc,
    positive_rate,
    reliability,
    roc_curve,
    sensitivity,
    youden_threshold,
)
from confide.evaluation.multiplicity import EnsembleReport, admitted, ensemble_decision, ensemble_report
from confide.evaluation.numbers import evaluate_numbers
from confide.evaluation.paid import PaidEstimate, PaidMetrics, paid_metrics
from confide.evaluation.segmentation import dice, evaluate_masks, hd95
from confide.evaluation.split import split_contributors

__all__ = [
    "METRICS",
    "EnsembleReport",
    "Estimate",
    "Fairness",
    "Group",
    "GroupRule",
    "NullEce",
    "PaidEstimate",
    "PaidMetrics",
    "accuracy",
    "admitted",
    "auprc",
    "auroc",
    "brier",
    "comorbidity",
    "dice",
    "ece",
    "ensemble_decision",
    "ensemble_report",
    "evaluate",
    "evaluate_masks",
    "evaluate_numbers",
    "fairness",
    "gap_correlation",
    "hd95",
    "mcc",
    "nll",
    "null_ece",
    "paid_metrics",
    "per_contributor",
    "positive_rate",
    "reliability",
    "roc_curve",
    "selective_curve",
    "sensitivity",
    "split_contributors",
    "youden_threshold",
]
