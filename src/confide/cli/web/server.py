"""The HTTP server of the pages: standard library only, every path from a fixed list, nothing of a request in a log."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from confide.cli.web import figures, pages
from confide.cli.web.book import Book
from confide.cli.web.gate import Gate, Session
from confide.errors import ConfideError, InputError
from confide.ledger.export import csv_text, releases_csv

log = logging.getLogger("confide.ledger.serve")

_LARGEST_FORM = 4096
_AT_ONCE = 16  # requests answered at a time; more wait in the socket's queue
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#004e7c"/>'
    '<path d="M4 5h8M4 8h8M4 11h5" stroke="#fff" stroke-width="1.6"/></svg>'
)
_HTML, _CSS, _SVG, _CSV = "text/html", "text/css", "image/svg+xml", "text/csv"


@dataclass
class Answer:
    """What goes back."""

    status: int
    body: str = ""
    kind: str = _HTML
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A request that is not answered; `event` is a fixed word for the log."""

    def __init__(self, status: int, title: str, text: str, event: str) -> None:
        super().__init__(event)
        self.status, self.title, self.text, self.event = status, title, text, event


def _missing() -> Refused:
    return Refused(404, "Not found", "There is no such page.", "unknown page")


class Site:
    """Turns requests into answers; knows nothing of sockets."""

    def __init__(self, book: Book, gate: Gate) -> None:
        self.book, self.gate = book, gate
        self._verifying = threading.Lock()
        self._get: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
            ("overview", re.compile(r"/"), self._overview),
            ("flows", re.compile(r"/flows"), self._flows),
            ("journal", re.compile(r"/journal"), self._journal),
            ("release", re.compile(r"/releases/([0-9a-f]{16})"), self._release),
            ("person", re.compile(r"/person/([0-9a-f]{16})"), self._person),
            ("download balances", re.compile(r"/download/balances\.(svg|csv)"), self._balances),
            ("download timeline", re.compile(r"/download/timeline\.(svg|csv)"), self._timeline),
            ("download releases", re.compile(r"/download/releases\.csv"), self._releases),
            ("download flows", re.compile(r"/download/flows\.csv"), self._flows_csv),
            ("download release", re.compile(r"/download/release-([0-9a-f]{16})\.(svg|csv)"), self._release_figure),
            ("download person", re.compile(r"/download/person-([0-9a-f]{16})\.(svg|csv)"), self._person_figure),
        ]

    def answer(self, method: str, path: str, headers: Any, form: dict[str, str]) -> tuple[str, Answer]:
        """Return (name of the page for the log, answer)."""
        if not self.gate.right_host(headers.get("Host")):
            raise Refused(421, "Wrong address", "This server answers only at its own address.", "wrong Host header")
        if method == "POST" and not self.gate.right_origin(headers.get("Origin"), headers.get("Sec-Fetch-Site")):
            raise Refused(403, "Refused", "This form was not sent from our own page.", "form from elsewhere")
        if (method, path) == ("GET", "/page.css"):
            return "style", Answer(200, pages.css(), _CSS)
        if (method, path) == ("GET", "/icon.svg"):
            return "icon", Answer(200, _ICON, _SVG)
        if (method, path) == ("POST", "/login"):
            return "login", self._login(form)
        session = self.gate.session(headers.get("Cookie"))
        if session is None:
            if method == "GET" and path == "/":
                return "login form", Answer(401, pages.login())
            raise Refused(401, "Log in first", "Log in with the token to see this.", "request without a login")
        if method == "POST":
            return self._post(path, form, session, headers)
        for name, pattern, call in self._get:
            match = pattern.fullmatch(path)
            if match:
                return name, call(session, *match.groups())
        raise _missing()

    def _post(self, path: str, form: dict[str, str], session: Session, headers: Any) -> tuple[str, Answer]:
        if path == "/logout":
            return "logout", Answer(
                303, headers={"Location": "/", "Set-Cookie": self.gate.logout(headers.get("Cookie"))}
            )
        if path == "/search":
            return "search", self._search(form, session)
        if path == "/verify":
            if not self._verifying.acquire(blocking=False):
                raise Refused(409, "Busy", "A verification is running already.", "verification running")
            try:
                if not self.book.verify().good:
                    log.error("verification: the ledger differs from its journal")
            finally:
                self._verifying.release()
            return "verify", Answer(303, headers={"Location": "/journal"})
        raise _missing()

    def _login(self, form: dict[str, str]) -> Answer:
        cookie = self.gate.login(form.get("token", "").strip())
        if cookie is None:
            time.sleep(0.5)
            log.warning("refused: wrong token")
            return Answer(401, pages.login(wrong=True))
        return Answer(303, headers={"Location": "/", "Set-Cookie": cookie})

    def _search(self, form: dict[str, str], session: Session) -> Answer:
        text, kind = form.get("who", "").strip(), form.get("kind", "id")
        try:
            if kind == "pseudonym":
                pseudonym = self.book.odometer.person(pseudonym=text).pseudonym
            else:
                pseudonym = self.book.pseudonym(text)
        except InputError as error:
            return Answer(400, pages.overview(self.book, said=f"{error.what}; expected {error.expected}"))
        return Answer(303, headers={"Location": f"/person/{session.remember(pseudonym)}"})

    def _overview(self, _: Session) -> Answer:
        return Answer(200, pages.overview(self.book))

    def _flows(self, _: Session) -> Answer:
        return Answer(200, pages.flows(self.book))

    def _journal(self, _: Session) -> Answer:
        return Answer(200, pages.journal(self.book, self.book.checked))

    def _release(self, _: Session, name: str) -> Answer:
        return Answer(200, pages.release(self.book, self._found(name)))

    def _person(self, session: Session, handle: str) -> Answer:
        return Answer(200, pages.person(*self.book.person(self._known(session, handle)), handle=handle))

    def _balances(self, _: Session, kind: str) -> Answer:
        return _taken(figures.balances(self.book.distribution()), kind, "balances")

    def _timeline(self, _: Session, kind: str) -> Answer:
        return _taken(figures.timeline(self.book.records()), kind, "timeline")

    def _releases(self, _: Session) -> Answer:
        return _file(releases_csv(self.book.ledger), _CSV, "releases.csv")

    def _flows_csv(self, _: Session) -> Answer:
        names = ("release", "sender", "recipient", "subject", "attributes", "purpose", "state", "created", "bits")
        rows = [
            {**{n: getattr(flow, n) for n in names[:-1]}, "attributes": ", ".join(flow.attributes), "bits": bits}
            for flow, bits in self.book.flows()
        ]
        return _file(csv_text(names, rows), _CSV, "flows.csv")

    def _release_figure(self, _: Session, name: str, kind: str) -> Answer:
        return _taken(figures.tradeoff(*self._found(name).tradeoff()), kind, f"release-{name}")

    def _person_figure(self, session: Session, handle: str, kind: str) -> Answer:
        return _taken(figures.course(*self.book.person(self._known(session, handle))), kind, "contributor")

    def _found(self, name: str) -> Any:
        try:
            return self.book.release(name)
        except InputError:
            raise _missing() from None

    def _known(self, session: Session, handle: str) -> str:
        if handle not in session.found:
            raise _missing()
        return session.found[handle]


def _taken(figure: figures.Figure, kind: str, name: str) -> Answer:
    return _file(figure.svg() if kind == "svg" else figure.csv(), _SVG if kind == "svg" else _CSV, f"{name}.{kind}")


def _file(text: str, kind: str, name: str) -> Answer:
    return Answer(200, text, kind, {"Content-Disposition": f'attachment; filename="{name}"'})


class Handler(BaseHTTPRequestHandler):
    """One connection: reads a request within limits, writes an answer with every header."""

    protocol_version = "HTTP/1.1"
    timeout = 20.0
    server: Server

    def version_string(self) -> str:
        """Say nothing about versions."""
        return "confide"

    def log_message(self, *_: Any) -> None:
        """Log nothing of a request's own words: `handle_one` logs the page by its name."""

    def do_GET(self) -> None:
        """Answer a page."""
        self._handle("GET")

    def do_HEAD(self) -> None:
        """Answer the head of a page."""
        self._handle("GET", head=True)

    def do_POST(self) -> None:
        """Answer a form."""
        self._handle("POST")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses (other methods, broken requests) without repeating it."""
        self.close_connection = True
        code = 405 if code == 501 else int(code)
        log.warning("refused: malformed request or method (%s)", code)
        self._send(Answer(code, pages.problem("Refused", "This request cannot be answered.", signed_in=False)))

    def _handle(self, method: str, *, head: bool = False) -> None:
        try:
            form = self._form() if method == "POST" else {}
            with self.server.room:  # not while waiting for somebody's form
                name, answer = self.server.site.answer(method, self.path, self.headers, form)
            log.info("%s: %s", name, answer.status)
        except Refused as refused:
            log.warning("refused: %s (%s)", refused.event, refused.status)
            self.close_connection = True
            signed = refused.status not in (401, 403, 421)
            answer = Answer(refused.status, pages.problem(refused.title, refused.text, signed_in=signed))
        except ConfideError as error:
            # The ledger's own words are internal and hold no id; they are for whoever is logged in.
            log.error("failed: %s", type(error).__name__)
            answer = Answer(503, pages.problem("The ledger cannot answer", error.what, signed_in=True))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        except Exception as error:
            log.error("failed: %s", type(error).__name__)
            answer = Answer(500, pages.problem("Failed", "The page could not be made.", signed_in=True))
        self._send(answer, head=head)

    def _form(self) -> dict[str, str]:
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if not length.isascii() or not length.isdigit() or len(length) > 6 or int(length) > _LARGEST_FORM:
            raise Refused(413, "Refused", "The form is too large.", "form too large")
        if kind != "application/x-www-form-urlencoded" or self.headers.get("Transfer-Encoding"):
            raise Refused(415, "Refused", "This is not a form.", "not a form")
        try:
            text = self.rfile.read(int(length)).decode("utf-8")
            fields = parse_qs(text, keep_blank_values=True, max_num_fields=8, encoding="utf-8", errors="strict")
        except ValueError:
            raise Refused(400, "Refused", "The form cannot be read.", "form not readable") from None
        return {name: values[0] for name, values in fields.items()}

    def _send(self, answer: Answer, *, head: bool = False) -> None:
        body = answer.body.encode("utf-8")
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response_only(answer.status)
            for name, value in {**self.server.site.gate.headers, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Type", f"{answer.kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if not head:
                self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """The listening socket."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], make: Callable[[int], Site], tls: ssl.SSLContext | None = None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.room = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, Handler)
        if tls is not None:
            # The handshake happens in the thread of the connection and within its time limit, never in the one that
            # accepts: somebody who connects and says nothing must not keep others out.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.site = make(int(self.server_address[1]))

    def server_bind(self) -> None:
        """Bind without asking a name server for our own name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a connection broke, and nothing of it."""
        log.warning("a connection broke")


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return what speaks TLS 1.2 or newer with a certificate (chain) and its private key, both PEM.

    Raises
    ------
    InputError
        A file is missing, the two do not fit, the key is encrypted, or others may read it.
    """
    key = key or certificate
    for file in (certificate, key):
        if not file.is_file():
            raise InputError("there is no such file", where=str(file), expected="a certificate and its key as PEM")
    if key.stat().st_mode & 0o007:
        raise InputError(
            "the private key of the certificate can be read by others", where=str(key), remedy=f"chmod 640 {key}"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InputError(
            "the certificate cannot be used",
            where=str(certificate),
            expected="a PEM certificate and its private key, the key not encrypted",
        ) from error
    return context
