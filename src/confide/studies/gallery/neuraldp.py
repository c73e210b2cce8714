"""Noise on a layer's activations instead of gradients: which variants are sound, and what the sound one is worth.

A. One release: the first part of the net is fixed and public, every record's activations are bounded, noised once and
kept; whatever is trained on them later is post-processing. The guarantee is local: any two inputs are 2 C apart, so
noise of deviation s gives mu = 2 C / s. Labels are not covered; here they go through randomised response, which pays
for them. B. Fresh noise at every look composes over the looks, without amplification by sampling. C. A first part that
is trained on the data is a release of its own and not covered.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from confide.evaluation import auroc
from confide.studies.gallery.base import Context, Figure, GalleryStudy, Outcome, Verdict, over_repetitions
from confide.studies.gallery.images import Labelled, Splits, learn, learn_plainly, read_digits, read_idx, share_right

_EPSILON, _LABELS, _DELTA, _WIDTH, _CLIP = 8.0, 2.0, 1e-5, 16, 1.0
_GAP, _LOOKS = 0.01, 10
F64 = npt.NDArray[np.float64]


def _first_part(x: npt.NDArray[np.float32]) -> F64:
    """Public random convolutions, rectified and pooled, standardised for each record and brought to norm C."""
    import torch

    generator = torch.Generator().manual_seed(20210714)
    channels = 64
    kernels = torch.randn(channels, x.shape[1], 3, 3, generator=generator)
    with torch.no_grad():
        z = torch.nn.functional.conv2d(torch.from_numpy(x), kernels, padding=1).relu()
        pooled = torch.nn.functional.adaptive_avg_pool2d(z, 4).flatten(1).double()
        mix = torch.randn(pooled.shape[1], _WIDTH, generator=generator, dtype=torch.float64)
        a = (pooled - pooled.mean(1, keepdim=True)) @ mix
        a = a - a.mean(1, keepdim=True)
        found: F64 = (a * (_CLIP / a.norm(dim=1, keepdim=True).clamp_min(1e-12))).numpy()
    return found


def _noise(epsilon: float) -> float:
    """Deviation that gives any two inputs (epsilon, delta): the Gaussian mechanism at sensitivity 2 C."""
    from confide.accounting.gaussian import mu_for

    return 2 * _CLIP / float(mu_for(epsilon, _DELTA))


def _answered(y: npt.NDArray[np.int64], epsilon: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Randomised response over ten classes."""
    keep = math.exp(epsilon) / (math.exp(epsilon) + 9)
    other = (y + rng.integers(1, 10, y.size)) % 10
    return np.where(rng.random(y.size) < keep, y, other)


def _one_release(splits: Splits, epsilon: float, *, labels: bool) -> float:
    """Release every record's activations once, then fit the second part on them; return the test accuracy."""
    from sklearn.linear_model import LogisticRegression

    # labels are paid for out of the same total where they are protected (basic composition of the two releases)
    s = _noise(epsilon - _LABELS if labels else epsilon)
    secret = np.random.default_rng()
    a = _first_part(splits.train.x)
    z = a + secret.normal(0.0, s, a.shape)
    y = _answered(splits.train.y, _LABELS, secret) if labels else splits.train.y
    second = LogisticRegression(C=0.01, max_iter=300).fit(z, y)
    return float((second.predict(_first_part(splits.test.x)) == splits.test.y).mean())


def _attack_gap(rng: np.random.Generator, draws: int) -> float:
    """Largest distance of the likelihood-ratio attack on two inputs as far apart as they can be from its bound."""
    from scipy.stats import norm

    s = _noise(_EPSILON)
    mu = 2 * _CLIP / s
    one = np.zeros(_WIDTH)
    one[0] = _CLIP
    null = rng.normal(0.0, s, (draws, _WIDTH)) - one
    other = rng.normal(0.0, s, (draws, _WIDTH)) + one
    ratio_null, ratio_other = (z @ (2 * one) / s**2 for z in (null, other))
    cuts = np.quantile(ratio_null, np.linspace(0.001, 0.999, 999))
    fpr = 1 - np.searchsorted(np.sort(ratio_null), cuts, side="right") / draws
    power = 1 - np.searchsorted(np.sort(ratio_other), cuts, side="right") / draws
    return float(np.abs(power - norm.cdf(mu - norm.isf(np.clip(fpr, 1e-12, 1 - 1e-12)))).max())


def _attack_looks(rng: np.random.Generator, looks: int, draws: int = 20000) -> float:
    """AUC of an attacker who sees `looks` releases with fresh noise, each as noisy as a single one would be."""
    s = _noise(_EPSILON)
    null = rng.normal(-_CLIP, s, (draws, looks)).mean(1)
    other = rng.normal(_CLIP, s, (draws, looks)).mean(1)
    return float(auroc(np.repeat([0, 1], draws), np.concatenate([null, other])))


def _change_of_first_part(data: Labelled) -> float:
    """Relative change of a trained first part when one record is left out, all randomness the same."""
    import torch

    from confide.nn import build

    found = []
    for rows in (slice(0, 200), slice(1, 200)):
        net = build("cnn", data.x.shape[1:], 10, widths=(8,), groups=4)
        learn_plainly(net, data.take(rows), np.random.default_rng(0), epochs=3, batch=200)
        found.append(torch.cat([v.detach().flatten() for v in net.parameters()]))
    return float((found[0] - found[1]).norm() / found[0].norm())


def _private_sgd(splits: Splits, epsilon: float, *, seed: int, device: str, steps: int) -> float:
    from confide.nn import build
    from confide.planning import plan
    from confide.training import make_optimizer

    how = plan(
        {1: len(splits.train)}, epsilon=epsilon, delta=_DELTA, noise_multiplier=2.0, steps=steps, strategy="contributor"
    )
    net = build("cnn", splits.train.x.shape[1:], 10, widths=(16, 32), seed=seed)
    learn(
        net,
        splits.train,
        how,
        optimizer=lambda p: make_optimizer("sgd", p, 0.5, momentum=0.9),
        device=device,
    )
    return share_right(net, splits.test)


def _run(context: Context) -> Outcome:
    full = context.size == "full"
    repetitions, steps = (5, 150) if full else (1, 10)
    found: dict[str, list[float]] = {}
    for number in range(repetitions):
        rng = context.rng(number)
        if context.data is None:
            splits = read_digits(rng)
        else:
            splits = read_idx(context.data, mean=0.1307, deviation=0.3081)
            splits = splits if full else splits.head(500)
        for what, value in {
            "one release, labels public": _one_release(splits, _EPSILON, labels=False),
            "one release, labels protected": _one_release(splits, _EPSILON, labels=True),
            "private SGD (labels protected)": _private_sgd(
                splits, _EPSILON, seed=number, device=context.device, steps=steps
            ),
        }.items():
            found.setdefault(f"test accuracy, {what}", []).append(value)
        context.say(f"run {number + 1} of {repetitions}: " + ", ".join(f"{v[-1]:.3f}" for v in found.values()))
    rng = context.rng(99)
    gap = _attack_gap(rng, 100_000 if full else 20_000)
    once, often = _attack_looks(rng, 1), _attack_looks(rng, _LOOKS)
    change = _change_of_first_part(splits.train)
    accuracies = [over_repetitions(what, values, share=True) for what, values in found.items()]
    figures = (
        *accuracies,
        Figure(
            "largest gap of the attack on one release to its bound", gap, note="at most 0.01 if mu = 2 C / s is right"
        ),
        Figure("AUC of an attacker, one release", once, note="two inputs as far apart as possible"),
        Figure(f"AUC of an attacker, {_LOOKS} looks with fresh noise", often, note="why looks compose"),
        Figure("change of a trained first part by one record, relative", change, note="no noise covers it"),
    )
    public, protected, sgd = (a.ours for a in accuracies)
    sound = gap <= _GAP
    verdict: Verdict = "holds" if sound and protected >= sgd else "holds in part" if public >= sgd else "does not hold"
    why = (
        f"one release is sound (attack within {gap:.4f} of its bound), {_LOOKS} looks lift the attacker from AUC "
        f"{once:.3f} to {often:.3f}, and a trained first part moves by {change:.1%} for one record, uncovered. At "
        f"epsilon "
        f"{_EPSILON:g} one release classifies {protected:.1%} ({public:.1%} with public labels), private SGD {sgd:.1%}."
    )
    return Outcome(verdict, why, figures)


STUDY = GalleryStudy(
    name="neuraldp",
    title="Noise on activations: which variants are sound, and their use",
    paper='Knolle et al., "NeuralDP: differentially private neural networks by design", arXiv 2107.14582, 2021',
    claim="Noise on the activations of one layer makes a network private and improves the trade-off between privacy "
    "and "
    "utility substantially over private SGD.",
    criterion="The attack on one release of fixed public features stays within 0.01 of its bound (mu = 2 C / s), and "
    "the "
    "test accuracy after one release with protected labels is at least that of private SGD at epsilon 8, delta 1e-5 "
    "per "
    "image; if only with public labels, in part. Fresh noise at every look must be composed, and a first part trained "
    "on "
    "the data is refused: for both the attack is shown.",
    data="1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (real); 16 public random features, "
    "epsilon "
    "8 in total (2 of it for the label where labels are protected)",
    run=_run,
    own_data="a folder with the four idx files of MNIST",
    minutes=4.0,
)
