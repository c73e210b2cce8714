"""A study of pictures in a .npz file, from file to release: features once, a claim per image, prediction of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

import confide
from confide.ledger import Ledger
from confide.studies import load_study, run_study

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pneumonia.toml"


def test_the_example_says_per_image():
    study = load_study(EXAMPLE)
    assert study.unit == "entry" and study.model.name == "scattering"
    assert study.data[0].images is not None and study.data[0].images.shape == (1, 28, 28)


def test_pictures_train_and_predict(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    pictures = rng.integers(0, 120, (60, 28, 28)) + 100 * labels[:, None, None] * (np.arange(28) > 13)
    np.savez(
        tmp_path / "pneumonia_xray_28.npz",
        train_images=pictures.astype(np.uint8),
        train_labels=labels[:, None].astype(np.uint8),
        test_images=pictures[:7].astype(np.uint8),
        test_labels=labels[:7, None].astype(np.uint8),
    )
    text = EXAMPLE.read_text()
    for old, new in {
        "steps = 200": "steps = 4",
        "4708": "60",
        '["non-private"]': "[]",
        '"scattering" ': '"hog" ',
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "study.toml").write_text(text)
    Ledger.create(f"sqlite:///{tmp_path}/pneumonia-ledger.sqlite", cap_epsilon=30.0, cap_delta=1e-3).close()
    outcome = run_study(tmp_path / "study.toml", device="cpu")
    certificate = outcome.release.certificate
    assert certificate.unit == "entry" and "per entry, not per person" in certificate.stamps
    assert any("per image, not per patient" in limit for limit in certificate.not_covered)
    loaded = confide.load(outcome.release.path)
    assert set(loaded.model.state_dict()) == {"head.weight", "head.bias"}
    found = loaded.predict(tmp_path / "pneumonia_xray_28.npz#test_")
    assert isinstance(found, pl.DataFrame) and found.height == 7
