"""Published recipes as one call.

>>> de_2022(views=8).augmentation.views
8
"""

from __future__ import annotations

from confide.training.methods.augmentation import Augmentation, ShiftFlip
from confide.training.methods.averaging import Averaging
from confide.training.methods.choice import Methods
from confide.training.methods.clipping import Clipping

__all__ = ["de_2022"]


def de_2022(*, views: int = 16, decay: float = 0.999, shift: int = 4, flip: bool = True) -> Methods:
    """Return the methods of De et al.: averaged views, averaged weights, a clip that is divided out.

    With plain gradient descent without momentum and a constant learning rate; `wideresnet` is their net. The average of
    their paper has decay 0.9999 over thousands of steps, that of their released configuration 0.999 over 875.

    Parameters
    ----------
    views : int
        Of every entry: 16 for the smaller nets.
    decay : float
        Of the average, with warm-up.
    shift : int
        Largest shift of a view in pixels.
    flip : bool
        Mirror left and right: False for hearts and letters.

    References
    ----------
    De, Berrada, Hayes, Smith, Balle: Unlocking high-accuracy differentially private image classification through scale,
    arXiv 2204.13650.
    """
    return Methods(
        clipping=Clipping(normalise=True),
        augmentation=Augmentation(views, ShiftFlip(shift, flip)),
        averaging=Averaging(decay),
    )
