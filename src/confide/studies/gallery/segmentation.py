"""A private U-Net that marks a lesion in simulated abdominal slices, several slices a person, counted per person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError
from confide.evaluation import dice, hd95
from confide.studies.gallery.base import Context, GalleryStudy, Outcome, Verdict, over_repetitions
from confide.studies.gallery.images import Labelled, learn, learn_plainly, logits_of
from confide.studies.gallery.published import decathlon_cases, read_nifti, shrink

_DELTA, _EPSILON, _SIZE, _SLICES = 1e-5, 8.0, 32, 4


def simulate(people: int, rng: np.random.Generator) -> Labelled:
    """Return slices of bodies with an organ (the mask) among other soft tissue; four a person, one after another.

    Parameters
    ----------
    people : int
    rng : numpy Generator

    Returns
    -------
    Labelled
        x of shape (4 people, 1, 32, 32), y of shape (4 people, 1, 32, 32) with 0 and 1.
    """
    axis = np.linspace(-1, 1, _SIZE)
    v, u = np.meshgrid(axis, axis, indexing="ij")

    def ellipse(centre: Any, radius: Any, angle: float) -> npt.NDArray[np.bool_]:
        a, b = u - centre[0], v - centre[1]
        p, q = a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)
        return np.asarray((p / radius[0]) ** 2 + (q / radius[1]) ** 2 < 1)

    x = np.empty((people, _SLICES, 1, _SIZE, _SIZE), dtype=np.float32)
    y = np.empty((people, _SLICES, 1, _SIZE, _SIZE), dtype=np.int64)
    for person in range(people):
        body = rng.uniform((0.75, 0.65), (0.95, 0.85))
        liver, size = np.array([-0.3, -0.1]) + rng.normal(0, 0.06, 2), rng.uniform((0.3, 0.25), (0.45, 0.4))
        angle, grey = rng.normal(0, 0.3), rng.uniform(0.55, 0.7)
        others = [
            (rng.uniform((0.1, -0.4), (0.5, 0.4)), rng.uniform(0.08, 0.22, 2), rng.uniform(0.2, 0.9)) for _ in range(4)
        ]
        for number in range(_SLICES):
            shrink = 1 - 0.12 * abs(number - 1.5) - rng.uniform(0, 0.05)
            image = np.where(ellipse((0, 0), body, 0.0), 0.35, 0.0)
            for centre, radius, level in others:
                image[ellipse(centre, radius * shrink, angle)] = level
            mask = ellipse(liver, size * shrink, angle)
            image[mask] = grey
            x[person, number, 0] = image + rng.normal(0, 0.08, image.shape)
            y[person, number, 0] = mask
    shape = (-1, 1, _SIZE, _SIZE)
    return Labelled((x.reshape(shape) - np.float32(0.3)) / np.float32(0.3), y.reshape(shape))


def read_livers(folder: Path, size: int = 64) -> Labelled:
    """Return four evenly spaced slices of the middle half of every case of Task03_Liver, in steps of people.

    Values are cut to -150 to 250 Hounsfield units, the window of soft tissue, and scaled by it; the mask is liver or
    tumour. Which slices are taken does not depend on what they show.

    Raises
    ------
    InputError
        Files are missing or of another shape.
    """
    xs, ys = [], []
    for file in decathlon_cases(folder):
        image, label = read_nifti(file), read_nifti(folder / "labelsTr" / file.name)
        if len(image.shape) != 3 or image.shape != label.shape:
            raise InputError(
                f"{file.name} and its label have the shapes {image.shape} and {label.shape}", where="--data"
            )
        for place in np.linspace(image.shape[2] // 4, 3 * image.shape[2] // 4, _SLICES).astype(int):
            grey = np.clip(np.asarray(image.dataobj[..., place], dtype=np.float32), -150, 250)
            xs.append(shrink((grey - 50) / 200, size))
            ys.append(shrink(np.asarray(label.dataobj[..., place]) > 0, size) > 0.5)
    return Labelled(np.stack(xs)[:, None], np.stack(ys)[:, None].astype(np.int64))


def _sides(context: Context, people: int, rng: np.random.Generator) -> tuple[Labelled, Labelled]:
    """Training and test people: simulated, or a random fifth of the real ones for the test."""
    if context.data is None:
        return simulate(people, rng), simulate(max(people // 5, 10), rng)
    whole = read_livers(context.data)
    order = rng.permutation(len(whole) // _SLICES)
    rows = [(part[:, None] * _SLICES + np.arange(_SLICES)).reshape(-1) for part in np.split(order, [len(order) // 5])]
    return whole.take(rows[1]), whole.take(rows[0])


def _scores(net: Any, data: Labelled) -> tuple[float, float]:
    """Mean Dice and mean 95% Hausdorff distance (pixels; the image's diagonal where nothing was marked)."""
    marked = logits_of(net, data.x) > 0
    diagonal = data.x.shape[-1] * 2**0.5
    each = [(dice(t[0] > 0, m[0]), min(hd95(t[0] > 0, m[0]), diagonal)) for t, m in zip(data.y, marked, strict=True)]
    overlap, distance = np.mean(each, axis=0)
    return float(overlap), float(distance)


def _run(context: Context) -> Outcome:
    from confide.nn import build, soft_dice
    from confide.planning import plan
    from confide.training import make_optimizer

    full = context.size == "full"
    repetitions, people, steps, epochs = (5, 500, 100, 6) if full else (1, 30, 4, 1)
    found: dict[str, list[float]] = {}
    for number in range(repetitions):
        rng = context.rng(number)
        train, test = _sides(context, people, rng)
        how = plan(
            {_SLICES: len(train) // _SLICES},
            epsilon=_EPSILON,
            delta=_DELTA,
            noise_multiplier=2.0,
            steps=steps,
            strategy="contributor",
        )
        for what in ("not private", "epsilon 8"):
            net = build("unet", train.x.shape[1:], 1, width=8, levels=2, groups=4, seed=number)
            if what == "not private":
                learn_plainly(
                    net, train, rng, epochs=epochs, learning_rate=2e-3, batch=64, device=context.device, loss=soft_dice
                )
            else:
                learn(
                    net,
                    train,
                    how,
                    optimizer=lambda p: make_optimizer("sgd", p, 0.1, momentum=0.9),
                    device=context.device,
                    loss=soft_dice,
                    entries_each=_SLICES,
                    physical_batch=512,
                )
            overlap, distance = _scores(net, test)
            found.setdefault(f"Dice, {what}", []).append(overlap)
            found.setdefault(f"HD95 in pixels, {what}", []).append(distance)
        context.say(f"run {number + 1} of {repetitions}: " + ", ".join(f"{v[-1]:.3f}" for v in found.values()))
    figures = {what: over_repetitions(what, values, share=what.startswith("Dice")) for what, values in found.items()}
    plain, private = figures["Dice, not private"].ours, figures["Dice, epsilon 8"].ours
    verdict: Verdict = "does not hold"
    if private > 0.85:
        verdict = "holds" if plain > 0.95 else "holds in part"
    return Outcome(
        verdict,
        f"Dice {private:.3f} at epsilon 8 per person against {plain:.3f} without privacy; 95% Hausdorff distance "
        f"{figures['HD95 in pixels, epsilon 8'].ours:.1f} against {figures['HD95 in pixels, not private'].ours:.1f} "
        f"pixels.",
        tuple(figures.values()),
    )


STUDY = GalleryStudy(
    name="segmentation",
    title="Private segmentation of an organ",
    paper='Ziller et al., "Differentially private federated deep learning for multi-site medical image segmentation", '
    "arXiv 2107.02586, 2021",
    claim="A U-Net can be trained for segmentation under strong privacy with a high Dice score.",
    criterion="On simulated slices, mean of 5 runs: Dice above 0.95 without privacy and above 0.85 at epsilon 8, delta "
    "1e-5 per person with all slices. HD95 is reported. (The paper's Dice scores are on real livers.)",
    data="simulated: 500 people with four abdominal slices of 32 x 32 pixels each, ellipses with noise",
    run=_run,
    simulation=True,
    own_data="the folder Task03_Liver of the Medical Segmentation Decathlon (imagesTr and labelsTr); one file a person",
    minutes=25.0,
)
