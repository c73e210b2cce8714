"""What travels with a release: no seed, no hash of private data, no password; one ledger wherever it is run from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from clinic import Clinic

from confide.errors import InputError
from confide.ledger import Ledger
from confide.studies import parse_study, run_study
from confide.studies.write import public_text


def test_hash_and_seed_stay_inside(clinic: Clinic) -> None:
    digest = hashlib.sha256((clinic.home / "visits.csv").read_bytes()).hexdigest()
    clinic.write(
        texts={
            'source = "visits.csv"': f'source = "visits.csv"\nsha256 = "{digest}"',
            "steps = 30": "steps = 30\nseed = 987654321987",
        }
    )
    release = clinic.run().release
    for file in release.path.iterdir():
        content = file.read_bytes()
        assert digest.encode() not in content, file.name
        assert b"987654321987" not in content, file.name
    assert digest in (release.internal / "study.toml").read_text()
    parse_study((release.path / "study.toml").read_text())


def test_inline_tables_are_redacted() -> None:
    text = (
        'data = [{source = "a.csv", sha256 = "'
        + "a" * 64
        + '", contributor = "id"}]\nprivacy = {epsilon = 1, seed = 7}\n'
    )
    assert public_text(text) == 'data = [{source = "a.csv", contributor = "id"}]\nprivacy = {epsilon = 1}\n'


def test_a_ledger_password_is_refused(clinic: Clinic) -> None:
    clinic.study.write_text(clinic.study.read_text() + '\n[ledger]\nurl = "postgresql://me:SECRET@host/db"\n')
    with pytest.raises(InputError, match="holds a password") as caught:
        clinic.run()
    assert "SECRET" not in str(caught.value)


def test_a_relative_ledger_is_the_studys_own(clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic.study.write_text(clinic.study.read_text() + '\n[ledger]\nurl = "sqlite:///ledger.sqlite"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Ledger.create(f"sqlite:///{elsewhere}/ledger.sqlite", cap_epsilon=20.0, cap_delta=1e-3).close()
    monkeypatch.chdir(elsewhere)
    run_study(clinic.study)
    assert clinic.spent() == 1
    with Ledger.open(f"sqlite:///{elsewhere}/ledger.sqlite") as other:
        assert other.reservations() == ()


def test_a_ledger_from_a_named_variable(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic.study.write_text(clinic.study.read_text() + '\n[ledger]\nurl = "env:CLINIC_LEDGER"\n')
    with pytest.raises(InputError, match="CLINIC_LEDGER is not set"):
        run_study(clinic.study)
    monkeypatch.setenv("CLINIC_LEDGER", clinic.url)
    run_study(clinic.study)
    assert clinic.spent() == 1
