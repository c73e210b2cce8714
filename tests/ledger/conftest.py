"""Ledgers for tests: on SQLite, and (marked slow) on a real PostgreSQL server started for the test session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from confide.accounting import Gaussian, Guarantee
from confide.ledger import Ledger

FOLDERS = (
    "/usr/lib/postgresql/18/bin",
    "/usr/lib/postgresql/17/bin",
    "/usr/lib/postgresql/16/bin",
    "/usr/lib/postgresql/15/bin",
    "/usr/lib/postgresql/14/bin",
)


def _program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join((*FOLDERS, os.environ.get("PATH", ""))))
    assert found, f"{name} is needed for the tests on PostgreSQL: apt-get install postgresql"
    return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of its own, on a socket in a temporary folder; the URL prefix of its databases."""
    folder = Path(tempfile.mkdtemp(prefix="confide-pg-"))
    account: dict[str, object] = {}
    if os.getuid() == 0:  # the server refuses to run as root
        user = pwd.getpwnam("postgres" if any(u.pw_name == "postgres" for u in pwd.getpwall()) else "nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **account)  # type: ignore[call-overload]

    data = folder / "data"
    run(_program("initdb"), "-D", str(data), "-U", "confide", "-A", "trust", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=100"
    run(_program("pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w", "-o", options, "start")
    os.chmod(folder, 0o755)
    try:
        yield f"postgresql://confide@/{{name}}?host={folder}"
    finally:
        run(_program("pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that holds nothing yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    import psycopg

    prefix = request.getfixturevalue("postgres")
    name = "t" + uuid.uuid4().hex
    with psycopg.connect(prefix.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return str(prefix.format(name=name))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "ledger.key"


@pytest.fixture
def new(url: str, key: Path) -> Callable[..., Ledger]:
    """Create the ledger of this test."""

    def create(epsilon: float = 8.0, delta: float = 1e-6, **more: str) -> Ledger:
        return Ledger.create(url, cap_epsilon=epsilon, cap_delta=delta, key=key, **more)

    return create


def gaussian(strength: float) -> Guarantee:
    """A guarantee of mu = strength."""
    return Gaussian(noise_multiplier=1 / strength).guarantee()


def take(ledger: Ledger, people: list[str], strength: float = 0.5, **more: object):  # type: ignore[no-untyped-def]
    """Reserve one class for everybody."""
    values: dict[str, object] = {"release": "r", "data_set": "d", **more}
    return ledger.reserve(
        contributors=people, class_of=np.zeros(len(people), int), classes=[gaussian(strength)], **values
    )
