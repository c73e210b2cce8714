"""What a private run may do besides the plain step; see the module of each.

`Methods` says which of them a run uses. They compose with each other, with any model and under any plan, unless
`Methods.check` refuses a combination with the reason.
"""

from confide.training.methods.augmentation import Augmentation, ShiftFlip
from confide.training.methods.averaging import Averaging, Snapshots
from confide.training.methods.bam import BiasAware, PreviousDirection
from confide.training.methods.choice import Methods
from confide.training.methods.clipping import Clipping
from confide.training.methods.complex_noise import complex_state, realify
from confide.training.methods.ensemble import Ensemble
from confide.training.methods.langevin import SGLD, natural_temperature
from confide.training.methods.matrix_noise import MatrixNoise
from confide.training.methods.neuraldp import NeuralDP, NeuralDPModel, NeuralDPRun
from confide.training.methods.predictor import Predictor
from confide.training.methods.recipes import de_2022
from confide.training.methods.temperature import fit_temperature

__all__ = [
    "SGLD",
    "Augmentation",
    "Averaging",
    "BiasAware",
    "Clipping",
    "Ensemble",
    "MatrixNoise",
    "Methods",
    "NeuralDP",
    "NeuralDPModel",
    "NeuralDPRun",
    "Predictor",
    "PreviousDirection",
    "ShiftFlip",
    "Snapshots",
    "complex_state",
    "de_2022",
    "fit_temperature",
    "natural_temperature",
    "realify",
]
