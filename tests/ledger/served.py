"""A ledger with a few releases behind the web server, and a plain HTTP client, for tests."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from confide.accounting import Gaussian, SampledGaussian
from confide.cli.web.book import Book
from confide.cli.web.gate import Gate
from confide.cli.web.server import Server, Site
from confide.ledger import Ledger

TOKEN = "a-token-of-thirty-two-characters"
NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> =cmd|' /C calc'!A0"


def filled(file: Path | Ledger, people: int = 400) -> Ledger:
    """A ledger whose balances are spread out, with releases in every state and a hostile name."""
    ledger = file if isinstance(file, Ledger) else Ledger.create(file, cap_epsilon=6.0, cap_delta=1e-6)
    ids = [f"patient-{i}" for i in range(people)]
    prices = [SampledGaussian(noise_multiplier=1.0, rate=0.002, entries=k).guarantee(steps=500) for k in (1, 2, 4)]
    rng = np.random.default_rng(3)
    for i in range(9):
        inside = np.sort(rng.choice(people, people * (i + 2) // 12, replace=False))
        kept = ledger.reserve(
            release=NASTY if i == 4 else f"chest X-ray model {i}",
            data_set=f"set {i % 3}",
            contributors=[ids[j] for j in inside],
            class_of=np.arange(len(inside)) % 3,
            classes=prices,
            recipient="university & partners",
            purpose="research",
            attributes=["image", "age"],
            sender="hospital",
        )
        if i == 7:
            ledger.abort(kept.id)
            continue
        ledger.start(kept.id)
        if i != 8:
            ledger.commit(kept.id, release_hash=f"{i:x}" * 64)
    kept = ledger.reserve(
        release="survival table",
        data_set="registry",
        contributors=ids[:60],
        class_of=np.zeros(min(60, people), int),
        classes=[Gaussian(noise_multiplier=1.6).guarantee()],
    )
    ledger.start(kept.id)
    ledger.commit(kept.id, release_hash="ef" * 32)
    return ledger


@contextlib.contextmanager
def running(ledger: Ledger, releases: Path | None = None, tls: Any = None) -> Iterator[Server]:
    """Serve a ledger on a free port."""
    book, names = Book(ledger, releases), {"127.0.0.1", "localhost"}
    server = Server(("127.0.0.1", 0), lambda port: Site(book, Gate(TOKEN, names, port, tls=tls is not None)), tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Client:
    """Asks exactly what it is told to; keeps its cookie."""

    def __init__(self, port: int) -> None:
        self.port, self.cookie = port, ""

    def ask(
        self, method: str, path: str, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent: dict[str, Any] = {"Cookie": self.cookie} if self.cookie else {}
        body = None
        if form is not None:
            body, sent["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        found = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].split(";")[0]
        return answer.status, found, text

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        return self.ask("GET", path, **headers)

    def post(self, path: str, form: dict[str, str], **headers: str) -> tuple[int, dict[str, str], str]:
        return self.ask("POST", path, form, **headers)

    def login(self) -> Client:
        assert self.post("/login", {"token": TOKEN})[0] == 303
        return self
