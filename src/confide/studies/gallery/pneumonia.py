"""Private pneumonia detection on small chest X-rays: fixed public features and a linear model before any network.

Each recipe was chosen before the test images were opened for it, on the published validation images and by threefold
cross-validation within the training images; no guarantee covers those choices. This is the second recipe. The first
(the coefficients as they are, noise multiplier 3 and 12, 200 and 100 steps, learning rate 8 and 4, clipping norm 1)
reached test AUC 0.967 at epsilon 8 and 0.940 at epsilon 1. For the second 38 recipes at epsilon 8 and 35 at epsilon 1
were compared, the first among them, in a simulation with 8 draws of the noise (4 a fold; the private mean was drawn
once, over all training images). Mean AUC in cross-validation, and on validation images:

==================================================  ==============  ==============
what was tried, each on top of the last             epsilon 8       epsilon 1
==================================================  ==============  ==============
the first recipe                                    0.9925, 0.9941  0.9775, 0.9818
larger batches, clipping norm 0.1, larger steps     0.9944, 0.9956  0.9885, 0.9881
every row to norm 1, centred at a private mean      0.9958, 0.9970  0.9911, 0.9925
averaged over views moved by two pixels             0.9960, 0.9972  0.9919, 0.9943
instead of the views: mirrored images               0.9949, 0.9966  0.9894, 0.9895
instead: HOG alone                                  0.9874, 0.9873  0.9797, 0.9783
instead: HOG beside                                 0.9957, 0.9962  0.9907, 0.9905
instead: three octaves beside two                   0.9957, 0.9968  0.9918, 0.9931
instead: pixels beside                              0.9958, 0.9971  0.9911, 0.9937
instead: logarithms of the coefficients             0.9943, 0.9974  0.9888, 0.9895
instead: images of equal brightness and contrast    0.9951, 0.9972  0.9894, 0.9918
==================================================  ==============  ==============

The rest were other groups of coefficients, other noise, steps, rates, clipping norms and intercepts, and averages over
the last iterates; none was better at both budgets.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from confide.errors import InputError
from confide.evaluation import accuracy, auroc, ece, null_ece
from confide.studies.gallery.base import Context, Figure, GalleryStudy, Outcome, Verdict, over_repetitions
from confide.studies.gallery.scattering import centre, plan_beside_the_mean, private_mean

if TYPE_CHECKING:
    from confide.nn import Scattering2d

_PUBLISHED_AUC, _PUBLISHED_ACC = 0.944, 0.854
_TARGETS = {8.0: 0.94, 1.0: 0.925}


class Recipe(NamedTuple):
    """Chosen on training and validation images; the clipping norm, 0.1, is that of the study `scattering`."""

    noise_multiplier: float
    steps: int
    learning_rate: float
    mean_noise: float


_RECIPES = {8.0: Recipe(8.0, 200, 64.0, 6.0), 1.0: Recipe(35.0, 100, 16.0, 12.0)}
# The intercept as one more feature: at 1 it would take half of every clipped gradient.
_INTERCEPT = 0.1
# Pixels by which the views of an image are moved.
_MOVE = 2


class Images(NamedTuple):
    """One split: images (n, 1, 28, 28) from -1 to 1, labels (n,)."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def read_medmnist(path: Path) -> dict[str, Images]:
    """Read a two-class MedMNIST file (.npz) with its published splits.

    Raises
    ------
    InputError
        An array is missing, or the labels are not 0 and 1.
    """
    out = {}
    with np.load(path) as file:
        for split in ("train", "val", "test"):
            if f"{split}_images" not in file or f"{split}_labels" not in file:
                raise InputError(
                    f"{path.name} has no array {split}_images or {split}_labels",
                    where="--data",
                    expected="a MedMNIST file such as pneumoniamnist.npz",
                )
            labels = file[f"{split}_labels"].reshape(-1).astype(np.int64)
            if not np.isin(labels, (0, 1)).all():
                raise InputError("labels other than 0 and 1", where=path.name, expected="a two-class MedMNIST set")
            images = file[f"{split}_images"].astype(np.float32)[:, None] / 127.5 - 1.0
            out[split] = Images(images, labels)
    return out


def _run(context: Context) -> Outcome:
    from sklearn.linear_model import LogisticRegression

    from confide.mechanisms import OSNoise
    from confide.nn import Scattering2d

    assert context.data is not None
    full = context.size == "full"
    splits = read_medmnist(context.data)
    if not full:
        splits = {name: Images(s.images[:300], s.labels[:300]) for name, s in splits.items()}
    front = Scattering2d(splits["train"].images.shape[1:])
    features = {name: _features(front, s.images) for name, s in splits.items()}
    labels = {name: s.labels for name, s in splits.items()}
    context.say(f"{front.size} scattering coefficients an image")
    plain = LogisticRegression(C=1000.0, max_iter=500).fit(features["train"], labels["train"])
    figures = [
        Figure(
            "test AUC, non-private logistic regression on the same features",
            float(auroc(labels["test"], plain.decision_function(features["test"]))),
            paper=_PUBLISHED_AUC,
            note="published: non-private ResNet-18",
        )
    ]
    repetitions = 5 if full else 1
    reached = True
    said = []
    for epsilon, recipe in _RECIPES.items():
        found: dict[str, list[float]] = {}
        spent = 0.0
        for number in range(repetitions):
            mean_feature = private_mean(features["train"], OSNoise(), noise_multiplier=recipe.mean_noise)
            x, x_test = features["train"].copy(), features["test"].copy()
            centre(x, mean_feature)
            centre(x_test, mean_feature)
            score, spent = _train(x, labels["train"], x_test, epsilon, recipe, context.device)
            p = 1.0 / (1.0 + np.exp(-score))
            chance = null_ece(p, bins=15, draws=300, rng=context.rng(number))
            once: dict[str, Any] = {
                "AUC": auroc(labels["test"], p),
                "accuracy": accuracy(labels["test"], p),
                "ECE (15 bins)": ece(labels["test"], p, bins=15),
                "ECE by chance, if calibrated": chance.mean,
            }
            for what, value in once.items():
                found.setdefault(what, []).append(float(value))
            context.say(f"epsilon {epsilon:g}, run {number + 1} of {repetitions}: AUC {found['AUC'][-1]:.4f}")
        for what, values in found.items():
            paper = {"AUC": _TARGETS[epsilon]}.get(what) if what == "AUC" else None
            one = over_repetitions(f"test {what}, epsilon {epsilon:g}", values, share=True)
            note = one.note
            if paper:
                note += (
                    f"; mean and training together spend {spent:.4f}; "
                    "in place of the paper's value: the goal set beforehand"
                )
            figures.append(Figure(one.what, one.ours, one.low, one.high, paper, note))
        mean = float(np.mean(found["AUC"]))
        reached &= mean >= _TARGETS[epsilon]
        said.append(f"{mean:.3f} at epsilon {epsilon:g}")
    verdict: Verdict = "holds" if reached else "does not hold"
    return Outcome(
        verdict,
        f"test AUC {' and '.join(said)}, with a linear model on fixed features; per image, not per patient.",
        tuple(figures),
    )


def _features(front: Scattering2d, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scattering coefficients of norm 1, averaged over an image and the same moved by two pixels in four directions.

    Brought to norm 1, since faint images otherwise have half of it, and the noise is the same for all.
    """
    none = np.zeros(front.size, dtype=np.float32)
    wide = np.pad(images, ((0, 0), (0, 0), (_MOVE, _MOVE), (_MOVE, _MOVE)), mode="edge")
    height, width = images.shape[2:]
    total = np.zeros((len(images), front.size), dtype=np.float32)
    for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        top, left = _MOVE * (1 + down), _MOVE * (1 + right)
        view = front.transform(wide[:, :, top : top + height, left : left + width])
        centre(view, none)
        total += view
    centre(total, none)
    return total


def _train(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    x_test: npt.NDArray[np.float32],
    epsilon: float,
    recipe: Recipe,
    device: str,
) -> tuple[npt.NDArray[np.float64], float]:
    """Train a linear model privately; return its scores of the test images and the epsilon of mean and training."""
    import torch

    from confide.studies.gallery.images import Labelled, learn, logits_of
    from confide.studies.models import loss_for
    from confide.training import make_optimizer

    how, spent = plan_beside_the_mean(len(y), epsilon, recipe.noise_multiplier, recipe.steps, recipe.mean_noise)
    net = torch.nn.Linear(x.shape[1] + 1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    learn(
        net,
        Labelled(_with_intercept(x), y),
        how,
        optimizer=lambda p: make_optimizer("sgd", p, recipe.learning_rate, momentum=0.9),
        device=device,
        loss=loss_for(1),
        physical_batch=8192,
    )
    return logits_of(net, _with_intercept(x_test)).reshape(-1), spent


def _with_intercept(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.column_stack([x, np.full(len(x), _INTERCEPT, dtype=np.float32)])


STUDY = GalleryStudy(
    name="pneumonia",
    title="Better features before larger networks: pneumonia on small chest X-rays",
    paper='Tramer and Boneh, "Differentially private learning needs better features (or much more data)", ICLR 2021; '
    "data and non-private figures: Yang et al., MedMNIST v2, 2023",
    claim="On data of this size private learning needs better features, not larger networks: a linear model on fixed "
    "public features, trained privately, does as well as published non-private networks.",
    criterion="Mean test AUC of 5 runs at least 0.94 at epsilon 8 and 0.925 at epsilon 1, delta 1e-5. The published "
    "non-private ResNet-18 has 0.944.",
    data="PneumoniaMNIST of MedMNIST v2: 4,708 training and 624 test images of children, no patient ids: every "
    "guarantee is per image, not per patient. The features are centred at a private mean, paid for out of the same "
    "epsilon. This is the second recipe for which the test images were opened; the first reached AUC 0.967 at epsilon "
    "8 and 0.940 at epsilon 1. The second was chosen among 38 recipes at epsilon 8 and 35 at epsilon 1, the first "
    "among them, on the published validation images and by cross-validation within the training images, which no "
    "guarantee covers. Mean AUC of the second less that of the first: on validation images +0.0025 (95% bootstrap "
    "interval over images 0.0011 to 0.0045) at epsilon 8 and +0.0091 (0.0056 to 0.0132) at epsilon 1; in "
    "cross-validation +0.0035 (0.0028 to 0.0045) and +0.0144 (0.0124 to 0.0164)",
    run=_run,
    own_data="a two-class MedMNIST file (.npz)",
    needs_data=True,
    minutes=8.0,
)
