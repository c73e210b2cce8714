"""A PostgreSQL server of its own for a benchmark: on a socket in a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

FOLDERS = [f"/usr/lib/postgresql/{version}/bin" for version in (18, 17, 16, 15, 14)]


class Server:
    """A running server; `fsync` stays on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.account: dict[str, object] = {}
        if os.getuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("postgres" if any(u.pw_name == "postgres" for u in pwd.getpwall()) else "nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self.account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", str(self.data), "-U", "confide", "-A", "trust", "--no-sync")
        self.start()
        os.chmod(folder, 0o755)

    def _run(self, program: str, *arguments: str) -> str:
        found = shutil.which(program, path=os.pathsep.join((*FOLDERS, os.environ.get("PATH", ""))))
        if found is None:
            raise SystemExit(f"{program} is needed: apt-get install postgresql")
        done = subprocess.run(  # type: ignore[call-overload]
            [found, *arguments], check=True, capture_output=True, text=True, cwd=self.folder, **self.account
        )
        return str(done.stdout)

    def start(self) -> None:
        """Start it, with recovery after a crash."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c max_connections=200"
        # stdout must not be a pipe here: the server would keep it open
        self._run(
            "pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-w", "-t", "300", "-o", options, "start"
        )

    def stop(self, *, crash: bool = False) -> None:
        """Stop it; `crash` as a power loss of the server process would: no checkpoint, recovery at the next start."""
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate" if crash else "fast", "-w", "-t", "120", "stop")

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://confide@/{name}?host={self.folder}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        import psycopg

        name = "b" + uuid.uuid4().hex
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def version(self) -> str:
        """Return the server's version."""
        return self._run("postgres", "--version").strip()


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """Start a server, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="confide-pg-"))
    server = None
    try:
        server = Server(folder)
        yield server
    finally:
        if server is not None:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.stop(crash=True)
        shutil.rmtree(folder, ignore_errors=True)
