"""Readers and simulations of the gallery: published formats, what is wrong with a file, and what was simulated."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from confide.errors import InputError
from confide.studies import gallery
from confide.studies.gallery import bam, complex_mri, images, neuraldp, published, segmentation, slices_3d
from confide.studies.gallery.idx_images import against_published, figures_of, read_sets


def write_idx(folder: Path, name: str, values: np.ndarray[Any, Any], *, packed: bool) -> None:
    header = np.array([0x0800 + values.ndim, *values.shape], ">i4").tobytes()
    data = header + values.astype(np.uint8).tobytes()
    if packed:
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    else:
        (folder / name).write_bytes(data)


def write_set(folder: Path, *, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 5), ("t10k", 3)):
        write_idx(folder, f"{split}-images-idx3-ubyte", np.full((count, 4, 4), 255), packed=packed)
        write_idx(folder, f"{split}-labels-idx1-ubyte", np.arange(count), packed=packed)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_as_published(tmp_path: Path, packed: bool) -> None:
    write_set(tmp_path, packed=packed)
    found = images.read_idx(tmp_path, mean=0.5, deviation=0.25)
    assert found.train.x.shape == (5, 1, 4, 4)
    assert found.test.y.tolist() == [0, 1, 2]
    assert len(found.validation) == 0
    assert np.allclose(found.train.x, 2.0)


def test_folders_of_sets_are_found(tmp_path: Path) -> None:
    write_set(tmp_path / "mnist", packed=True)
    write_set(tmp_path / "fashion", packed=False)
    assert list(read_sets(tmp_path)) == ["mnist", "fashion"]
    assert list(read_sets(tmp_path / "mnist")) == ["mnist"]


def test_what_is_wrong_with_an_idx_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file train-images"):
        images.read_idx(tmp_path, mean=0.0, deviation=1.0)
    write_set(tmp_path, packed=True)
    write_idx(tmp_path, "train-images-idx3-ubyte", np.zeros(7), packed=True)
    with pytest.raises(InputError, match="no idx file of 3"):
        images.read_idx(tmp_path, mean=0.0, deviation=1.0)


@pytest.mark.parametrize("top", [1, 255])
def test_medmnist_is_read_in_two_and_three_dimensions(tmp_path: Path, top: int) -> None:
    file = tmp_path / "set.npz"
    arrays = {}
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = np.full((count, 8, 8, 8), top, np.uint8)
        arrays[f"{split}_labels"] = np.ones((count, 1), np.uint8)
    np.savez(file, **arrays)
    found = slices_3d._read(file, 4)
    assert found.train.x.shape == (4, 1, 4, 4, 4)
    assert np.allclose(found.train.x, 1.0)
    assert len(found.validation) == 2
    del arrays["val_labels"]
    np.savez(file, **arrays)
    with pytest.raises(InputError, match="val_labels"):
        images.read_medmnist(file)


def test_digits_are_split_once_each() -> None:
    found = images.read_digits(np.random.default_rng(0))
    assert (len(found.train), len(found.test)) == (1397, 400)
    again = images.read_digits(np.random.default_rng(0))
    assert np.array_equal(found.train.x, again.train.x)
    assert found.train.x.min() == -1.0


def test_simulated_people_have_all_their_entries() -> None:
    scans = complex_mri.simulate(6, np.random.default_rng(0))
    assert scans.x.shape == (24, 2, 32, 32)
    assert scans.y[:4].tolist() == [0, 1, 2, 3]
    slices = segmentation.simulate(3, np.random.default_rng(0))
    assert slices.x.shape == slices.y.shape == (12, 1, 32, 32)
    assert set(np.unique(slices.y)) == {0, 1}
    assert 0.03 < slices.y.mean() < 0.3


def test_throwing_the_phase_away_keeps_the_lengths() -> None:
    scans = complex_mri.simulate(2, np.random.default_rng(0))
    scrambled = complex_mri._scrambled(scans, np.random.default_rng(1))
    assert np.allclose(
        np.hypot(*scans.x.transpose(1, 0, 2, 3)), np.hypot(*scrambled.x.transpose(1, 0, 2, 3)), atol=1e-4
    )
    assert not np.allclose(scans.x, scrambled.x)


def test_circular_noise_has_its_deviation_in_each_component() -> None:
    assert complex_mri._spread(np.random.default_rng(0)) == pytest.approx(1.0, abs=0.01)


def test_one_release_is_bounded_and_calibrated() -> None:
    x = images.read_digits(np.random.default_rng(0)).test.x
    a = neuraldp._first_part(x)
    assert np.allclose(np.linalg.norm(a, axis=1), 1.0)
    # the analytic Gaussian mechanism: deviation over sensitivity at epsilon 1, 3 and 8, delta 1e-5
    for epsilon, ratio in ((1.0, 3.73), (3.0, 1.39), (8.0, 0.600)):
        assert neuraldp._noise(epsilon) / 2 == pytest.approx(ratio, rel=5e-3)


def test_randomised_response_keeps_its_share() -> None:
    y = np.zeros(20_000, dtype=np.int64)
    said = neuraldp._answered(y, 2.0, np.random.default_rng(0))
    keep = np.exp(2.0) / (np.exp(2.0) + 9)
    assert (said == 0).mean() == pytest.approx(keep, abs=0.015)
    assert np.bincount(said, minlength=10)[1:].min() > 800


def test_bias_is_zero_without_clipping_and_read_at_equal_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from confide.nn import build

    data = images.read_digits(np.random.default_rng(0)).train.take(slice(0, 20))
    net = build("cnn", (1, 8, 8), 10, widths=(4,), groups=2)
    monkeypatch.setattr(bam, "_CLIP", 1e6)
    watch = bam._Watch(net, data, 1)
    watch(1, 1)
    assert watch.biases == [0.0]
    watch.losses, watch.biases = [2.0, 1.0, 0.5], [0.1, 0.3, 0.5]
    assert watch.bias_at(0.75) == pytest.approx(0.4)


def test_figures_stand_beside_the_published_ones() -> None:
    found = {("mnist", 3.0, "ours"): 0.99, ("mnist", 3.0, "other"): 0.9, ("fashion", 1.0, "ours"): 0.8}
    figures = figures_of(found, "ours")
    assert [f.paper for f in figures] == [0.987, None, None]
    assert figures[0].low is not None
    assert figures[0].low == pytest.approx(0.98805, abs=1e-4)
    assert against_published(found, "ours").endswith("mnist at 3: +0.3")
    assert "nothing published" in against_published({("fashion", 1.0, "ours"): 0.8}, "ours")


def write_cifar10(folder: Path, each: int = 40) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (each, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(each) % 10
        rows[0, 1:] = 255
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


def test_cifar10_is_read_in_its_binary_version_and_never_from_pickles(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10")
    found = published.read_cifar10(tmp_path / "cifar10")
    assert found.train.x.shape == (200, 3, 32, 32)
    assert found.test.y.tolist() == [i % 10 for i in range(40)]
    assert found.train.x[0, :, 0, 0] == pytest.approx(
        (1 - np.array([0.4914, 0.4822, 0.4465])) / [0.247, 0.2435, 0.2616]
    )
    assert list(read_sets(tmp_path)) == list(read_sets(tmp_path / "cifar10")) == ["cifar10"]
    (tmp_path / "cifar10" / "data_batch_3.bin").write_bytes(b"12")
    with pytest.raises(InputError, match=r"data_batch_3\.bin is no file"):
        published.read_cifar10(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "data_batch_3.bin").unlink()
    with pytest.raises(InputError, match="pickles"):
        published.read_cifar10(tmp_path / "cifar10")


def write_decathlon(folder: Path, shape: tuple[int, ...], cases: int = 12) -> None:
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in range(cases):
        label = np.zeros(shape[:3], dtype=np.uint8)
        label[: shape[0] // 2] = 1 + case % 2  # liver, or tumour in it
        values = rng.integers(-500, 500, shape).astype(np.int16)
        for name, array in (("imagesTr", values), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / name / f"case_{case:03d}.nii.gz")
        (folder / "imagesTr" / f"._case_{case:03d}.nii.gz").write_bytes(b"left by a Mac")


def test_livers_are_read_as_published(tmp_path: Path) -> None:
    write_decathlon(tmp_path, (70, 66, 9))
    found = segmentation.read_livers(tmp_path)
    assert found.x.shape == found.y.shape == (48, 1, 64, 64)
    assert -1 <= found.x.min() < found.x.max() <= 1
    assert found.y[:, 0, :30].all() and not found.y[:, 0, 34:].any()
    (tmp_path / "labelsTr" / "case_003.nii.gz").unlink()
    with pytest.raises(InputError, match=r"no file case_003.nii.gz"):
        segmentation.read_livers(tmp_path)
    with pytest.raises(InputError, match="ten cases or more"):
        segmentation.read_livers(tmp_path / "labelsTr")


def test_brains_are_read_as_published(tmp_path: Path) -> None:
    write_decathlon(tmp_path, (68, 70, 5, 4))
    found = complex_mri.read_brains(tmp_path)
    assert found.x.shape == (48, 2, 32, 32)
    assert found.y[:5].tolist() == [0, 1, 2, 3, 0]
    write_decathlon(tmp_path / "wrong", (68, 70, 5))
    with pytest.raises(InputError, match="four sequences"):
        complex_mri.read_brains(tmp_path / "wrong")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"), [("segmentation", (70, 66, 9)), ("complex-mri", (68, 70, 5, 4)), ("bam", ())]
)
def test_studies_run_small_on_the_papers_own_data(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    if shape:
        write_decathlon(tmp_path, shape)
    else:
        write_cifar10(tmp_path)
    found = gallery.run_study_of_gallery(gallery.study(name), gallery.Context(data=tmp_path))
    assert not found.simulation and found.figures


def test_the_study_on_scattering_compares_with_what_is_published(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 120), ("t10k", 60)):
        labels = np.arange(count) % 10
        write_idx(tmp_path, f"{split}-images-idx3-ubyte", rng.integers(0, 200, (count, 12, 12)), packed=True)
        write_idx(tmp_path, f"{split}-labels-idx1-ubyte", labels, packed=True)
    found = gallery.run_study_of_gallery(gallery.study("scattering"), gallery.Context(data=tmp_path))
    papers = {f.what: f.paper for f in found.figures if f.what.startswith("test")}
    assert papers == {f"test accuracy, mnist, epsilon {e}": p for e, p in (("1", 0.981), ("3", 0.987), ("8", 0.987))}
    assert found.verdict == "does not hold" and "mnist at 8" in found.why


def test_one_image_moves_the_private_mean_by_at_most_its_share() -> None:
    from confide.mechanisms import SeededNoise
    from confide.studies.gallery.scattering import centre, private_mean

    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 7)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[3] *= 40  # a row that breaks the promise of norm 1 is clipped to it
    without = x.copy()
    without[3] = 0
    means = [private_mean(side, SeededNoise(5), noise_multiplier=2.0) for side in (x, without)]
    moved = 50 * np.linalg.norm(means[0].astype(np.float64) - means[1])
    assert 0.99 < moved <= 1 + 1e-5
    noise = 50 * private_mean(np.zeros((50, 2000), dtype=np.float32), SeededNoise(5), noise_multiplier=2.0)
    assert noise.std() == pytest.approx(2.0, rel=0.1)
    centre(x, means[0])
    assert np.all(np.linalg.norm(x.astype(np.float64), axis=1) <= 1)
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(50), abs=1e-5)


@pytest.mark.parametrize(("epsilon", "mean_noise"), [(1.0, 30.0), (8.0, 30.0), (1.0, 12.0), (8.0, 6.0)])
def test_mean_and_training_together_stay_within_the_budget(epsilon: float, mean_noise: float) -> None:
    from confide.accounting import Gaussian
    from confide.studies.gallery.scattering import plan_beside_the_mean

    how, spent = plan_beside_the_mean(1000, epsilon, 2.0, 20, mean_noise)
    alone = Gaussian(mean_noise).guarantee().epsilon(1e-5)
    assert how.classes[0].epsilon < spent <= epsilon
    assert spent > 0.97 * epsilon
    assert spent <= how.classes[0].epsilon + alone


def test_the_study_on_pneumonia_learns_what_is_plain_to_see_and_states_both_costs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 300), ("val", 20), ("test", 80)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 60, (count, 28, 28))
        images[labels == 1, 10:18] += 150
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(tmp_path / "xray.npz", **arrays)
    found = gallery.run_study_of_gallery(gallery.study("pneumonia"), gallery.Context(data=tmp_path / "xray.npz"))
    of = {f.what: f for f in found.figures}
    assert of["test AUC, epsilon 8"].ours > 0.9
    for epsilon in (1, 8):
        spent = float(of[f"test AUC, epsilon {epsilon}"].note.split("together spend ")[1].split(";")[0])
        assert 0.97 * epsilon < spent <= epsilon


def test_a_size_that_a_study_has_not_is_refused() -> None:
    from confide.studies import gallery

    with pytest.raises(InputError, match="no size of its own"):
        gallery.run_study_of_gallery(gallery.study("bam"), gallery.Context(size="cpu"))


def test_pictures_are_halved_for_a_cpu_with_their_own_border() -> None:
    from confide.studies.gallery.idx_images import halved
    from confide.studies.gallery.images import Labelled

    x = np.random.default_rng(0).random((3, 1, 28, 28)).astype(np.float32) - 2
    out = halved(Labelled(x, np.arange(3)))
    assert out.x.shape == (3, 1, 16, 16)
    dark = x.min((1, 2, 3))
    assert np.allclose(out.x[:, 0, 0, 0], dark)
    assert np.allclose(out.x[:, 0, 1:-1, 1:-1].mean((1, 2)), x.mean((1, 2, 3)), atol=1e-5)
    assert halved(Labelled(np.zeros((2, 3, 32, 32), np.float32), np.arange(2))).x.shape == (2, 3, 16, 16)


def test_a_gain_counts_only_beyond_the_chance_of_the_accuracies_found() -> None:
    from confide.studies.gallery.idx_images import judged

    def verdict(ours: float, other: float) -> str:
        found = {("mnist", 3.0, "a"): ours, ("mnist", 3.0, "b"): other}
        return judged((found, {}), "a", "b", "gain", beyond_chance=True).verdict

    assert verdict(0.9925, 0.989) == "holds"  # 0.35 points, above 0.28
    assert verdict(0.855, 0.85) == "does not hold"  # 0.5 points, but 0.98 would be needed
    assert verdict(0.865, 0.85) == "holds"


def test_multiplicity_reads_pictures_with_their_published_splits(tmp_path: Path) -> None:
    from confide.studies.gallery.multiplicity import read_pictures

    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for name, count in (("train", 23), ("val", 12), ("test", 15)):
        labels = rng.integers(0, 2, count)
        images = rng.integers(0, 100, (count, 28, 28)) + 120 * labels[:, None, None]
        arrays |= {f"{name}_images": images.astype(np.uint8), f"{name}_labels": labels[:, None].astype(np.uint8)}
    file = tmp_path / "set.npz"
    np.savez(file, **arrays)
    split = read_pictures(file, None)
    start = 0
    for part, name in ((split.train, "train"), (split.validation, "val"), (split.test, "test")):
        own = arrays[f"{name}_labels"].reshape(-1)
        assert part.entries.tolist() == list(range(start, start + len(own))), "no image changed its side"
        # labels and mean scores of "people" are in the order of the index, whatever the names of the rows
        assert np.array_equal(part.labels, part.scores(split.table.labels.astype(float)))
        assert sorted(part.labels) == sorted(own)
        start += len(own)
    assert split.table.index.n_contributors == 50
    assert len(read_pictures(file, 5).test.labels) == 5
    found = gallery.run_study_of_gallery(gallery.study("multiplicity"), gallery.Context(data=file))
    assert found.figures
    assert "of the images" in found.why
    del arrays["val_images"]
    np.savez(file, **arrays)
    with pytest.raises(InputError, match="val_images"):
        read_pictures(file, None)
