"""The gallery: every study is described before it runs, findings survive a round trip, and bad names are explained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from confide.cli import main
from confide.errors import InputError
from confide.studies import gallery
from confide.studies.gallery import Context, Figure, Finding, GalleryStudy, Outcome, over_repetitions


@pytest.mark.parametrize("name", gallery.names())
def test_every_study_says_what_it_claims_and_on_what(name: str) -> None:
    study = gallery.study(name)
    assert study.name == name
    for text in (study.title, study.paper, study.claim, study.criterion, study.data):
        assert len(text) > 10
    if study.simulation:
        assert "simulat" in study.data.lower()
    found = gallery.kept_finding(name)
    if found is not None:
        assert found.size == "full" or (found.size == "cpu" and study.cpu)
        assert found.criterion == study.criterion
        assert found.figures
        assert found.why


def test_findings_on_other_data_stand_beside_and_replace_nothing() -> None:
    beside = gallery.kept_beside("langevin")
    kept = gallery.kept_finding("langevin")
    assert kept is not None
    assert beside["icu"].study == "langevin"
    assert beside["icu"].data != kept.data
    assert beside["icu"].size == "full"
    assert gallery.kept_beside("bam") == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in gallery.names() if not gallery.study(name).needs_data])
def test_every_study_runs_small(name: str) -> None:
    found = gallery.run_study_of_gallery(gallery.study(name), Context())
    assert found.figures
    assert found.verdict in ("holds", "holds in part", "does not hold", "not decided")


def toy() -> GalleryStudy:
    def run(context: Context) -> Outcome:
        context.say("half way")
        return Outcome("does not hold", "it is a toy.", (Figure("answer", 41.0, 40.0, 43.0, paper=42.0),))

    return GalleryStudy("toy", "A toy", "Nobody, 2026", "The answer is 42.", "It is 42.", "nothing", run)


def test_a_finding_survives_the_file_and_a_claim_may_fail() -> None:
    lines: list[str] = []
    found = gallery.run_study_of_gallery(toy(), Context(say=lines.append))
    assert lines == ["half way"]
    assert found.verdict == "does not hold"
    assert Finding.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.versions["python"]


def test_data_of_ones_own_need_a_reader(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no reader"):
        gallery.run_study_of_gallery(toy(), Context(data=tmp_path))


def test_a_study_without_data_says_what_it_reads() -> None:
    needy = dataclasses.replace(toy(), own_data="a MedMNIST file (.npz)", needs_data=True)
    with pytest.raises(InputError, match="do not come with"):
        gallery.run_study_of_gallery(needy, Context())
    with pytest.raises(InputError, match="nothing at"):
        gallery.run_study_of_gallery(needy, Context(data=Path("nowhere.npz")))


def test_interval_over_repetitions() -> None:
    figure = over_repetitions("x", [1.0, 2.0, 3.0])
    assert figure.ours == 2.0
    assert figure.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert over_repetitions("x", [1.0]).low is None


def test_interval_of_a_share_stays_within_0_and_1() -> None:
    values = [1.0, 1.0, 0.8666, 1.0, 1.0]
    assert (over_repetitions("x", values).high or 0.0) > 1
    figure = over_repetitions("x", values, share=True)
    assert figure.low is not None
    assert figure.high is not None
    assert 0 < figure.low < figure.ours < figure.high < 1
    narrow = [0.5, 0.501, 0.499]  # where shares are far from the ends both intervals agree
    plain, logit = over_repetitions("x", narrow), over_repetitions("x", narrow, share=True)
    assert logit.low == pytest.approx(plain.low, abs=1e-5)
    assert logit.high == pytest.approx(plain.high, abs=1e-5)
    assert over_repetitions("x", [1.0, 1.0], share=True).high == 1.0


@pytest.mark.parametrize("name", gallery.names())
def test_no_kept_interval_of_a_share_leaves_its_range(name: str) -> None:
    found = gallery.kept_finding(name)
    for f in found.figures if found else ():
        if "logit" in f.note:
            assert f.low is not None
            assert f.high is not None
            assert 0 <= f.low <= f.ours <= f.high <= 1


def test_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(["studies"]) == 0
    shown = capsys.readouterr().out
    assert "multiplicity" in shown
    assert main(["studies", "run", "multiplicty"]) == 2
    assert "did you mean 'multiplicity'" in capsys.readouterr().err
    monkeypatch.setattr(gallery, "study", lambda name: toy())
    target = tmp_path / "found.json"
    assert main(["studies", "run", "toy", "--output", str(target)]) == 0
    assert "does not hold" in capsys.readouterr().out
    assert json.loads(target.read_text())["figures"][0]["paper"] == 42.0
    assert main(["studies", "run", "toy", "--output", str(target)]) == 2  # nothing is overwritten unasked
    assert main(["studies", "run", "toy", "--size", "huge"]) == 2


def test_the_published_table_of_nih_is_read(tmp_path: Path) -> None:
    from confide.studies.gallery.fair_xray import read_nih

    file = tmp_path / "Data_Entry_2017_v2020.csv"
    file.write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,X\n"
        "00000001_000.png,Cardiomegaly|Effusion,0,1,057Y,M,PA,1\n"
        "00000002_000.png,No Finding,3,2,414,F,AP,1\n"
    )
    frame = read_nih(file)
    assert frame["finding"].to_list() == [1, 0]
    assert frame["age"].to_list() == [57.0, 100.0]  # 414 is a known slip in the published table
    assert frame["patient"].to_list() == ["1", "2"]
    file.write_text("Image Index,Finding Labels\na.png,No Finding\n")
    with pytest.raises(InputError, match="no column"):
        read_nih(file)


def test_the_published_file_of_medmnist_is_read(tmp_path: Path) -> None:
    import numpy as np

    from confide.studies.gallery.pneumonia import read_medmnist

    arrays = {}
    for split, n in (("train", 5), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = np.full((n, 28, 28), 255, np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    file = tmp_path / "pneumoniamnist.npz"
    np.savez(file, **arrays)
    found = read_medmnist(file)
    assert found["test"].images.shape == (4, 1, 28, 28)
    assert found["test"].images.max() == 1.0
    assert found["train"].labels.tolist() == [0, 1, 0, 1, 0]
    np.savez(file, train_images=arrays["train_images"])
    with pytest.raises(InputError, match="no array"):
        read_medmnist(file)
