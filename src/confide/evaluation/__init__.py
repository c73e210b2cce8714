"""What a result is worth: discrimination and calibration on held-out people, with honest intervals.

`evaluate` gives exact figures with bootstrap intervals over contributors; they are internal. `paid_metrics` gives noisy
ones that may leave, charged to the people they were measured on.
"""

from confide.evaluation.bootstrap import METRICS, Estimate, evaluate, per_contributor
from confide.evaluation.metrics import accuracy, auprc, auroc, brier, ece, reliability, roc_curve
from confide.evaluation.paid import PaidEstimate, PaidMetrics, paid_metrics
from confide.evaluation.split import split_contributors

__all__ = [
    "METRICS",
    "Estimate",
    "PaidEstimate",
    "PaidMetrics",
    "accuracy",
    "auprc",
    "auroc",
    "brier",
    "ece",
    "evaluate",
    "paid_metrics",
    "per_contributor",
    "reliability",
    "roc_curve",
    "split_contributors",
]
