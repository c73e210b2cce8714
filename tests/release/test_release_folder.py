"""A release folder is there whole, or not there; what must not leave is beside it, closed to others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from confide.errors import InputError, RunError, VerificationError
from confide.release import Release, write_release
from confide.release import folder as folder_module

ARTEFACTS = {"model.safetensors": b"\x00" * 5000, "study.toml": "version = 1\n"}
INTERNAL = {"figures.json": "{}", "report.html": "<p>exact</p>"}


def complete(folder: Path) -> bool:
    """Whether every file a folder should hold is there with the hash that the certificate states."""
    hashes = json.loads((folder / "certificate.json").read_text())["artefacts"]
    return {p.name for p in folder.iterdir()} == {*hashes, "certificate.json"} and all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in hashes.items()
    )


def finals(parent: Path) -> list[Path]:
    return [p for p in parent.iterdir() if not p.name.startswith(".")] if parent.is_dir() else []


def test_a_release_is_written_and_read_back(certificate, tmp_path):
    source = tmp_path / "big.bin"
    source.write_bytes(b"weights" * 1000)
    path = write_release(
        tmp_path / "releases",
        "pbc death!",
        certificate,
        {
            **ARTEFACTS,
            "weights.bin": source,
            "report.html": lambda c: "<p>" + c.artefacts["weights.bin"] + "</p>",
        },
        INTERNAL,
    )
    assert re.fullmatch(r"pbc-death-\d{8}T\d{6}Z-[0-9a-f]{6}", path.name)
    assert path.parent == tmp_path / "releases"
    assert complete(path)
    release = Release.load(path)
    assert set(release.certificate.artefacts) == {*ARTEFACTS, "weights.bin", "report.html"}
    assert release.certificate.model_copy(update={"artefacts": {}}) == certificate
    assert release.file("weights.bin").read_bytes() == source.read_bytes()
    assert release.certificate.artefacts["weights.bin"] in release.file("report.html").read_text()
    assert release.digest == hashlib.sha256((path / "certificate.json").read_bytes()).hexdigest()
    assert {p.name for p in release.internal.iterdir()} == set(INTERNAL)
    with pytest.raises(InputError, match="no file"):
        release.file("other.bin")


def test_internal_files_are_closed_to_others(certificate, tmp_path):
    path = write_release(tmp_path / "releases", "s", certificate, ARTEFACTS, INTERNAL)
    inside = tmp_path / "internal" / path.name
    assert stat.S_IMODE(inside.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in inside.iterdir())


def test_two_releases_of_one_name_do_not_meet(certificate, tmp_path):
    paths = {write_release(tmp_path / "r", "s", certificate, ARTEFACTS) for _ in range(5)}
    assert len(paths) == 5


@pytest.mark.parametrize("name", ["../up", "a/b", "certificate.json", ".hidden", "", "a b"])
def test_file_names_are_plain(certificate, tmp_path, name):
    with pytest.raises(InputError):
        write_release(tmp_path, "s", certificate, {name: b""})
    with pytest.raises(InputError):
        write_release(tmp_path, "s", certificate, ARTEFACTS, {name: b""})
    assert finals(tmp_path) == []


def test_a_full_disk_leaves_nothing(certificate, tmp_path, monkeypatch):
    written = 0
    real = os.fsync

    def full(handle: int) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_release(tmp_path / "releases", "s", certificate, ARTEFACTS, INTERNAL)
    assert list((tmp_path / "releases").iterdir()) == []
    assert list((tmp_path / "internal").iterdir()) == []


def test_a_report_that_fails_leaves_nothing(certificate, tmp_path):
    def broken(_: object) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_release(tmp_path / "releases", "s", certificate, {**ARTEFACTS, "report.html": broken}, INTERNAL)
    assert list((tmp_path / "releases").iterdir()) == []


def test_loading_something_else_says_so(tmp_path):
    with pytest.raises(InputError, match="not a release folder"):
        Release.load(tmp_path / "nowhere")
    (tmp_path / "certificate.json").write_text('{"name": 1}')
    with pytest.raises(VerificationError, match="published form"):
        Release.load(tmp_path)


def killed_at(call: int, certificate, parent: Path) -> bool:
    """Run a writer in a child that kills itself before its `call`-th file operation; False once it survives."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapper

        for name in ("fsync", "rename", "mkdir", "fchmod", "open"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            write_release(parent / "releases", "s", certificate, ARTEFACTS, INTERNAL)
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_before_any_file_operation_nothing_half_written_has_a_final_name(certificate, tmp_path):
    kills = 0
    while killed_at(kills + 1, certificate, tmp_path):
        kills += 1
        assert kills < 200, "a writer does not get to its end"
        for folder in finals(tmp_path / "releases"):
            assert complete(folder), f"killed at operation {kills}"
            assert len(finals(tmp_path / "internal")) >= 1
        for inside in finals(tmp_path / "internal"):
            assert {p.name for p in inside.iterdir()} == set(INTERNAL)
    assert kills > 15, "the writer did fewer file operations than it has files: the test no longer cuts it"
    # the survivor also swept what the killed ones had staged
    assert list((tmp_path / "releases").glob(".*")) == []
    assert list((tmp_path / "internal").glob(".*")) == []


def test_sweeping_spares_a_writer_at_work(tmp_path):
    with folder_module._staged(tmp_path, "s-1", mode=0o700) as stage:
        (stage / "half").write_bytes(b"x")
        folder_module._sweep(tmp_path)
        assert (stage / "half").exists()
    assert not stage.exists()


WRITER = """
import sys
from pathlib import Path
from confide.release import Certificate, write_release
certificate = Certificate.model_validate_json(Path(sys.argv[1]).read_text())
print("ready", flush=True)
while True:
    write_release(Path(sys.argv[2]) / "releases", "s", certificate, {"model.bin": b"w" * 3_000_000}, {"figures.json": b"f" * 500_000})
"""  # noqa: E501


@pytest.mark.slow
def test_killed_at_any_moment(certificate, tmp_path):
    """SIGKILL after a random while, many times: whatever has a final name is whole."""
    file = tmp_path / "c.json"
    file.write_text(certificate.to_json())
    for round_ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.02 + 0.013 * round_)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        for folder in finals(tmp_path / "releases"):
            assert complete(folder)
            assert (tmp_path / "internal" / folder.name / "figures.json").stat().st_size == 500_000
