"""Commands and their exit codes: 0 done, 1 failed, 2 wrong input, 3 refused by a budget, 4 contradicted."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from confide.cli import main

CSV = "patient,visit,pressure,ill\n" + "".join(
    f"{p:03d},{v},{100 + 10 * (p % 5) + v},{p % 2}\n" for p in range(40) for v in range(1 + p % 3)
)
STUDY = """
version = 1
name = "small"
[[data]]
source = "visits.csv"
contributor = "patient"
entry = "visit"
[columns.pressure]
type = "real"
bounds = [60, 220]
[columns.ill]
role = "label"
classes = [0, 1]
positive = [1]
[public]
max_entries = 3
max_contributors = 100
[privacy]
epsilon = 2.0
delta = 1e-4
noise_multiplier = 1.5
steps = 10
[evaluation]
bootstrap = 50
[ledger]
url = "sqlite:///ledger.sqlite"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONFIDE_LEDGER", raising=False)
    (tmp_path / "visits.csv").write_text(CSV)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


def ledger(epsilon: str = "10") -> None:
    assert (
        main(["ledger", "init", "--url", "sqlite:///ledger.sqlite", "--cap-epsilon", epsilon, "--cap-delta", "1e-3"])
        == 0
    )


def release_of(home: Path) -> Path:
    return next((home / "releases").iterdir())


def test_from_csv_to_prediction(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger()
    assert main(["train", "study.toml", "--yes"]) == 0
    shown = capsys.readouterr().out
    folder = release_of(home)
    assert str(folder / "report.html") in shown
    assert main(["verify", str(folder), "--ledger", "sqlite:///ledger.sqlite"]) == 0
    assert main(["predict", str(folder), "visits.csv", "--output", "out.csv"]) == 0
    lines = (home / "out.csv").read_text().splitlines()
    assert len(lines) == len(CSV.splitlines())
    assert lines[0].endswith(",probability") and lines[1].split(",")[0] == CSV.splitlines()[1].split(",")[0]
    assert main(["predict", str(folder), "visits.csv", "--output", "out.csv"]) == 2  # nothing is overwritten unasked
    assert main(["predict", str(folder), "visits.csv", "--output", "out.csv", "--force"]) == 0
    assert main(["report", str(folder), "--output", "again.html"]) == 0
    assert (home / "again.html").read_text() == (folder / "report.html").read_text()


def test_nothing_is_written_into_a_release(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger()
    assert main(["train", "study.toml", "--yes"]) == 0
    folder = release_of(home)
    (home / "alias").symlink_to(folder)
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    capsys.readouterr()
    init = ["init", "visits.csv", "--contributor", "patient", "--label", "ill"]
    draft = ["schema", "draft", "visits.csv", "--contributor", "patient"]
    for command, place in (
        (["predict", str(folder), "visits.csv"], folder / "deep" / "out.csv"),
        (["predict", str(folder), "visits.csv", "--force"], folder / "report.html"),
        (["predict", str(folder), "visits.csv"], home / "alias" / "out.csv"),
        (["report", str(folder)], folder / "again.html"),
        (["risk", str(folder)], folder / "risk.html"),
        (["train", "study.toml", "--yes"], folder / "releases"),
        (["ledger", "export", "releases", "--ledger", "sqlite:///ledger.sqlite"], folder / "releases.csv"),
        (["ms", "simulate", "--patients", "9"], folder),
        (init, folder / "draft.toml"),
        (draft, folder / "draft.toml"),
    ):
        assert main([*command, "--output", str(place)]) == 2, command
        said = " ".join(capsys.readouterr().err.split())
        assert "lies inside the release" in said and "certificate.json" in said, said
    assert main(["ledger", "backup", str(folder / "copy.sqlite"), "--ledger", "sqlite:///ledger.sqlite"]) == 2
    assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == before
    assert main(["verify", str(folder)]) == 0


def test_verify_finds_a_changed_certificate(home: Path) -> None:
    ledger()
    main(["train", "study.toml", "--yes"])
    file = release_of(home) / "certificate.json"
    facts = json.loads(file.read_text())
    facts["classes"][0]["epsilon"] = facts["classes"][0]["epsilon_lower"] = 0.5
    file.write_text(json.dumps(facts))
    assert main(["verify", str(release_of(home))]) == 4


def test_verify_says_what_was_not_asked_and_makes_the_page_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger()
    main(["train", "study.toml", "--yes"])
    folder = release_of(home)
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert not checks["ledger"]["asked"]
    assert checks["report.html"]["asked"] and "the same page" in checks["report.html"]["detail"]
    # a page with other words, and a certificate that names its hash: every hash is right, the words are not
    page, certificate = folder / "report.html", folder / "certificate.json"
    page.write_text(page.read_text().replace("</body>", "<p>Nobody can learn anything.</p></body>"))
    facts = json.loads(certificate.read_text())
    facts["artefacts"]["report.html"] = hashlib.sha256(page.read_bytes()).hexdigest()
    certificate.write_text(json.dumps(facts))
    assert main(["verify", str(folder)]) == 4


def test_verify_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger()
    main(["train", "study.toml", "--yes"])
    capsys.readouterr()
    assert main(["verify", str(release_of(home)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_budget_refusal_is_three(home: Path) -> None:
    ledger("2.5")
    assert main(["train", "study.toml", "--yes"]) == 0
    assert main(["train", "study.toml", "--yes"]) == 3


def test_wrong_input_is_two(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger()
    assert main(["train", "no-such.toml", "--yes"]) == 2
    (home / "study.toml").write_text(STUDY.replace("steps", "stepz"))
    assert main(["train", "study.toml", "--yes"]) == 2
    assert "did you mean 'steps'?" in capsys.readouterr().err
    assert main(["verify", str(home)]) == 2
    assert main(["nonsense"]) == 2
    assert main(["train"]) == 2


def test_missing_ledger_offers_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "study.toml", "--yes"]) == 2
    assert "confide ledger init" in capsys.readouterr().err


def test_price_needs_somebody_to_accept_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger()
    assert main(["train", "study.toml"]) == 2
    assert "--yes" in capsys.readouterr().err


def test_rehearse(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "visits.csv").unlink()
    assert main(["train", "study.toml", "--rehearse"]) == 0
    assert "Nothing was read" in capsys.readouterr().out


def test_init_lists_what_was_looked_at_and_its_draft_is_a_study(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "visits.csv", "--contributor", "patient", "--label", "ill", "--output", "draft.toml"]) == 0
    shown = capsys.readouterr().out
    assert "LOOKING AT THE DATA" in shown
    assert "pressure" in shown
    from confide.studies import load_study

    assert load_study(home / "draft.toml").data[0].contributor == "patient"
    assert main(["init", "visits.csv", "--contributor", "patient", "--label", "ill", "--output", "draft.toml"]) == 2
    assert main(["init", "visits.csv", "--contributor", "pat", "--label", "ill", "--output", "other.toml"]) == 2


def test_plan_of_a_study(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "study.toml", "--json"]) == 0
    assert "individual" in json.loads(capsys.readouterr().out)["strategies"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["extras"]["train"] is True
    assert all(found[name] for name in ("engine", "precision", "kernels", "noise", "memory", "processes"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("confide ")


def test_planning_never_loads_torch(home: Path) -> None:
    (home / "counts.csv").write_text("entries,contributors\n1,50\n2,20\n")
    code = (
        "import sys; from confide.cli import main;"
        "main(['plan','--entry-counts','counts.csv','--epsilon','2','--delta','1e-5','--noise-multiplier','1','--steps','50']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=home, check=False, capture_output=True).returncode == 0
