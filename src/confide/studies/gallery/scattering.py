"""Does a linear model on fixed public features reach the best published accuracies on MNIST and Fashion-MNIST?

The recipe was chosen on the last 5,000 training images, which no guarantee covers: noise, steps, learning rate and
clipping norm at epsilon 3; at 1 and 8 noise and rate were scaled and tried once on MNIST, on Fashion-MNIST not at all.
The features are centred at their private mean, which costs next to nothing and lets far larger steps be taken: without
it one direction, the mean itself, decides how large a step may be.
"""

from __future__ import annotations

import hashlib
import io
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from confide._files import write_atomic
from confide.errors import UnreachableError
from confide.studies.gallery.base import Context, Figure, GalleryStudy, Outcome, Verdict, over_repetitions
from confide.studies.gallery.idx_images import BASELINES, DELTA, EPSILONS, read_sets
from confide.studies.gallery.images import F32, Labelled, learn, share_right

if TYPE_CHECKING:
    from confide.mechanisms import NoiseSource
    from confide.planning import Plan


class Recipe(NamedTuple):
    """Chosen on training images."""

    noise_multiplier: float
    learning_rate: float


# Tried at epsilon 3: on MNIST 40 and 80, on Fashion-MNIST 40, 80 and 160; there the gradients stay larger.
_RECIPES = {1.0: Recipe(5.0, 40.0), 3.0: Recipe(2.0, 80.0), 8.0: Recipe(1.2, 160.0)}
_RATE_OF = {"fashion": 2.0}
_STEPS, _CLIP = 400, 0.1
# Noise multiplier of the mean: 30 of 60,000 images blur it by 3% of its length and take under 1% of the budget.
_MEAN_NOISE = 30.0


def _features(front: Any, images: F32, context: Context) -> F32:
    """Scattering coefficients of norm 1, rounded to half precision, kept in the folder of the context if it has one.

    They are computed on the device that trains; on a CPU a few images at a time, which stay in its cache.
    """
    import torch

    file = None
    if context.cache is not None:
        digest = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()[:16]
        file = context.cache / f"scattering-{front.scales}-{front.angles}-{digest}.npy"
        if file.is_file():
            return _full(np.load(file))
    front = front.to(context.device)
    each = 512 if context.device.startswith("cuda") else 16
    out = np.empty((len(images), front.size), dtype=np.float16)
    with torch.no_grad():
        for low in range(0, len(images), each):
            part = torch.from_numpy(images[low : low + each]).to(context.device)
            out[low : low + each] = (front(part) * math.sqrt(front.size)).cpu().numpy()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, out)
        write_atomic(file, content.getvalue())
    return _full(out)


def _full(halves: npt.NDArray[np.float16]) -> F32:
    """Values of variance 1 in half precision to rows of norm 1 (up to rounding)."""
    out = halves.astype(np.float32)
    out /= np.float32(math.sqrt(out.shape[1]))
    return out


def private_mean(features: F32, noise: NoiseSource, *, noise_multiplier: float = _MEAN_NOISE) -> F32:
    """Return the mean of features of norm 1 at most, with Gaussian noise on their sum.

    Parameters
    ----------
    features : float32 array, shape (images, size)
    noise : NoiseSource
    noise_multiplier : float
        Leaving an image out changes the sum by its norm, 1 at most.
    """
    total = np.zeros(features.shape[1])
    for low in range(0, len(features), 4096):
        part = features[low : low + 4096].astype(np.float64)
        total += (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1.0)).sum(0)
    total += noise.normal(features.shape[1], scale=noise_multiplier)
    return (total / len(features)).astype(np.float32)


def centre(features: F32, mean: F32) -> None:
    """Take the mean away and bring every row to norm 1 again, in place: what is done to a row depends on it alone."""
    for low in range(0, len(features), 4096):
        part = features[low : low + 4096]
        part -= mean
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.float32(1e-6)) * np.float32(1 + 1e-6)


def plan_beside_the_mean(
    people: int, epsilon: float, noise_multiplier: float, steps: int, mean_noise: float = _MEAN_NOISE
) -> tuple[Plan, float]:
    """Return the plan that spends what the private mean leaves of `epsilon`, and the epsilon of both together."""
    from confide.accounting import Gaussian, compose
    from confide.planning import plan

    for reserve in (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1):
        how = plan(
            {1: people},
            epsilon=epsilon * (1 - reserve),
            delta=DELTA,
            noise_multiplier=noise_multiplier,
            steps=steps,
            strategy="contributor",
            clip_norm=_CLIP,
        )
        mean = Gaussian(mean_noise, relation=how.relation).guarantee()
        spent = compose([mean, how.guarantee(how.classes[0])]).epsilon(DELTA)
        if spent <= epsilon:
            return how, spent
    raise UnreachableError(f"the mean alone takes a tenth of epsilon {epsilon:g}")


def _trained(context: Context, train: Labelled, held: Labelled, epsilon: float, rate: float) -> tuple[float, float]:
    """Train once at `rate` times the recipe's; return the accuracy on `held` and the epsilon of mean and training."""
    import torch

    from confide.training import make_optimizer

    recipe = _RECIPES[epsilon]
    steps = _STEPS if context.size != "small" else 3
    how, spent = plan_beside_the_mean(len(train), epsilon, recipe.noise_multiplier, steps)
    net = torch.nn.Linear(train.x.shape[1], 10)
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.zeros_(net.bias)
    learn(
        net,
        train,
        how,
        optimizer=lambda p: make_optimizer("sgd", p, recipe.learning_rate * rate, momentum=0.9),
        device=context.device,
        physical_batch=16384,
    )
    return share_right(net, held), spent


def _run(context: Context) -> Outcome:
    from confide.mechanisms import OSNoise
    from confide.nn import Scattering2d

    assert context.data is not None
    full = context.size != "small"
    repetitions = {"small": 1, "cpu": 2, "full": 3}[context.size]
    figures: list[Figure] = []
    reached: list[bool] = []
    said = []
    for name, read in read_sets(context.data).items():
        splits = read if full else read.head(200)
        front = Scattering2d(splits.train.x.shape[1:])
        train, test = (Labelled(_features(front, side.x, context), side.y) for side in (splits.train, splits.test))
        mean = private_mean(train.x, OSNoise())
        centre(train.x, mean)
        centre(test.x, mean)
        context.say(f"{name}: {front.size} scattering coefficients an image")
        for epsilon in EPSILONS:
            base = BASELINES.get(name, {}).get(epsilon)
            found = []
            for number in range(repetitions):
                share, spent = _trained(context, train, test, epsilon, _RATE_OF.get(name, 1.0))
                found.append(share)
                context.say(f"{name}, epsilon {epsilon:g}, run {number + 1} of {repetitions}: {share:.4f}")
            one = over_repetitions(f"test accuracy, {name}, epsilon {epsilon:g}", found, share=True)
            note = f"{one.note}; mean and training together spend {spent:.4f}"
            note = note if base is None else f"{note}; published: {base.where}"
            paper = None if base is None else base.accuracy
            figures.append(Figure(one.what, one.ours, one.low, one.high, paper, note))
            if base is not None:
                reached.append(one.ours >= base.accuracy)
                said.append(f"{name} at {epsilon:g} {one.ours:.2%} ({(one.ours - base.accuracy) * 100:+.2f} points)")
    verdict: Verdict = "holds" if all(reached) else "holds in part" if any(reached) else "does not hold"
    why = f"against the best published accuracies, {_COMPARED}: {', '.join(said)}. {_UNCOVERED.format(repetitions)}"
    return Outcome(verdict, why, tuple(figures))


_COMPARED = "of which those for epsilon 8 were published at 3"
_UNCOVERED = "Runs a budget: {}, with one draw of the private mean for all. The recipe's choice is not covered."


STUDY = GalleryStudy(
    name="scattering",
    title="Better features before larger networks: MNIST and Fashion-MNIST",
    paper='Tramer and Boneh, "Differentially private learning needs better features (or much more data)", ICLR 2021',
    claim="A linear model on scattering coefficients, trained privately, is as accurate as the best networks trained "
    "privately from scratch.",
    criterion="Mean test accuracy of the runs (3; 2 at the size cpu) at or above the best published one known to us at "
    "epsilon 1, 3 and 8, delta 1e-5, wherever there is one, on every set given; at some of them, in part.",
    data="MNIST and Fashion-MNIST, published splits, delta 1e-5 per image; neither brings ids of people. The features "
    "are centred at a private mean, paid for out of the same epsilon. The recipe was chosen on the last 5,000 training "
    "images (at epsilon 3; scaled for 1 and 8), which no guarantee covers",
    run=_run,
    own_data="a folder with the four idx files of MNIST, or with folders mnist and fashion of such files",
    needs_data=True,
    minutes=40.0,
    cpu="Two runs a budget instead of three; all else as in full",
)
