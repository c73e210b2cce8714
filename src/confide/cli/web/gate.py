"""Who may ask: the login token, sessions, the Host and Origin of a request, and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

IDLE = 30 * 60.0  # seconds until an unused session ends
LONGEST = 8 * 3600.0
_SESSIONS, _FOUND = 32, 256  # sessions at a time; people found in one session

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # "no-referrer" would make browsers send "Origin: null" with our own forms
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Robots-Tag": "noindex",
}


@dataclass
class Session:
    """One login: when it began and was last used, and whom it looked up (a random handle -> pseudonym)."""

    began: float
    seen: float
    found: OrderedDict[str, str] = field(default_factory=OrderedDict, repr=False)

    def remember(self, pseudonym: str) -> str:
        """Return a handle for an address, so that not even a pseudonym stands in a browser's history."""
        for handle, known in self.found.items():
            if known == pseudonym:
                return handle
        handle = secrets.token_hex(8)
        self.found[handle] = pseudonym
        while len(self.found) > _FOUND:
            self.found.popitem(last=False)
        return handle


class Gate:
    """The token and the sessions of one server. Only hashes of both are kept."""

    def __init__(
        self, token: str, names: set[str], port: int, *, outside: set[str] | None = None, tls: bool = False
    ) -> None:
        """Keep the token's hash.

        Parameters
        ----------
        names : set of str
            Names under which this server is reached at its own port.
        outside : set of str, optional
            Of these, those under which a web server in front of it is reached, at the usual port.
        tls : bool
            Whether this server itself speaks TLS.
        """
        self._token = _hash(token)
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._lock = threading.Lock()
        self.hosts = {f"{name}:{port}" for name in names} | (names if port == (443 if tls else 80) else set())
        self.hosts |= outside or set()
        self._schemes = ("https",) if tls else ("http", "https")
        self._secure = "; Secure" if tls or outside else ""
        self.headers = HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if tls else {})
        # Cookies do not know ports: two ledgers on one machine must not overwrite each other's.
        self.cookie = f"confide_{port}"

    def right_host(self, host: str | None) -> bool:
        """Whether a request names this server; a page elsewhere whose name was re-bound to this address does not."""
        return host is not None and host.lower() in self.hosts

    def right_origin(self, origin: str | None, site: str | None) -> bool:
        """Whether a form was sent from our own page; browsers say so, other clients say nothing."""
        if site is not None and site not in ("same-origin", "none"):
            return False
        return origin is None or any(
            origin.lower() == f"{scheme}://{host}" for scheme in self._schemes for host in self.hosts
        )

    def login(self, token: str) -> str | None:
        """Return the cookie of a new session for the right token, else None."""
        if not hmac.compare_digest(_hash(token), self._token):
            return None
        name, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            self._sessions[_hash(name)] = Session(now, now)
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        return f"{self.cookie}={name}; Path=/; HttpOnly; SameSite=Strict; Max-Age={int(LONGEST)}{self._secure}"

    def session(self, cookies: str | None) -> Session | None:
        """Return the session that a Cookie header names, if it lives."""
        name, now = self._named(cookies), time.monotonic()
        if name is None:
            return None
        with self._lock:
            found = self._sessions.get(_hash(name))
            if found is None:
                return None
            if now - found.seen > IDLE or now - found.began > LONGEST:
                del self._sessions[_hash(name)]
                return None
            found.seen = now
            return found

    def logout(self, cookies: str | None) -> str:
        """End a session; return the header that removes its cookie."""
        name = self._named(cookies)
        if name is not None:
            with self._lock:
                self._sessions.pop(_hash(name), None)
        return f"{self.cookie}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0{self._secure}"

    def _named(self, cookies: str | None) -> str | None:
        try:
            jar = SimpleCookie(cookies or "")
        except CookieError:
            return None
        return jar[self.cookie].value if self.cookie in jar else None


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
