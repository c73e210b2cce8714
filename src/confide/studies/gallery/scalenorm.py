"""Does a normalisation of its own after every residual sum help a ResNet-9 under private training?"""

from __future__ import annotations

from confide.studies.gallery.base import Context, GalleryStudy, Outcome, Verdict
from confide.studies.gallery.idx_images import accuracies, against_published, figures_of

_WITH, _WITHOUT = "ResNet-9 with scale normalisation", "ResNet-9 without"


def _run(context: Context) -> Outcome:
    from confide.nn import build

    found = accuracies(
        context,
        {
            _WITH: lambda: build("resnet9", (1, 28, 28), 10, scale_norm=True),
            _WITHOUT: lambda: build("resnet9", (1, 28, 28), 10, scale_norm=False),
        },
        steps=80,
        learning_rate=0.3,
        physical_batch=2048,
    )
    gains = {key[:2]: value - found[(*key[:2], _WITHOUT)] for key, value in found.items() if key[2] == _WITH}
    better = [gain > 0.0028 for gain in gains.values()]
    verdict: Verdict = "holds" if all(better) else "holds in part" if any(better) else "does not hold"
    why = (
        "gain by scale normalisation in points: "
        + ", ".join(f"{name} at epsilon {epsilon:g} {gain * 100:+.2f}" for (name, epsilon), gain in gains.items())
        + f". In {against_published(found, _WITH)}."
    )
    return Outcome(verdict, why, tuple(figures_of(found, _WITH)))


STUDY = GalleryStudy(
    name="scalenorm",
    title="Scale normalisation after residual sums",
    paper='Klause et al., "Differentially private training of residual networks with scale normalisation", arXiv '
    '2203.00324, 2022; not confirmed by Bao and Bindschaedler, ACSAC 2024 ("towards reliable and generalizable '
    'differentially private machine learning"): about +1 point on a plain net, nothing on top of the best recipe',
    claim="A normalisation after every residual sum makes private residual nets better.",
    criterion="With the same plan, initial seed and recipe the accuracy is higher by more than 0.28 points (1.96 "
    "standard "
    "errors of a difference at 98.9 % of 10,000 images) at epsilon 1, 3 and 8 on every set given; at some of them, in "
    "part. One run each. The best published accuracies from scratch stand beside, and decide nothing.",
    data="MNIST and Fashion-MNIST, published splits, delta 1e-5 per image; neither brings ids of people",
    run=_run,
    own_data="a folder with the four idx files of MNIST, or with folders mnist and fashion of such files",
    needs_data=True,
    minutes=600.0,
)
