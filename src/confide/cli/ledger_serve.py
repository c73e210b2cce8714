"""``confide ledger serve``: a ledger in the browser, for reading only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confide.cli.ledger_app import Key, Url, app, open_ledger
from confide.errors import InputError, RunError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command("serve")
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8750,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine: with --name.")] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Host name under which browsers reach it (may be repeated).")
    ] = None,
    releases: Annotated[
        Path | None, typer.Option(help="Folder of releases, to show the facts of their certificates.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option("--cert", help="PEM certificate (chain): the pages are then served over TLS.")
    ] = None,
    cert_key: Annotated[
        Path | None, typer.Option("--cert-key", help="Its private key, if it is not in the same file.")
    ] = None,
    without_tls: Annotated[
        bool,
        typer.Option("--without-tls", help="Beyond this machine in clear: only behind a web server that speaks TLS."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log refusals only, not every page.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show the ledger in a browser, for reading only; the token to log in with is printed once, here."""
    import logging
    import secrets
    import sys

    from confide.cli.web.book import Book
    from confide.cli.web.gate import Gate
    from confide.cli.web.server import Server, Site, tls_context

    if host not in _LOOPBACK and not name:
        raise InputError(
            f"{host} can be reached from other machines",
            expected="--name HOST, the name under which browsers will reach it",
        )
    if host not in _LOOPBACK and cert is None and not without_tls:
        raise InputError(
            f"{host} can be reached from other machines, and the token and the figures would travel in clear",
            expected="--cert FILE.pem with --cert-key FILE.pem",
            remedy="or put it behind a web server that speaks TLS, and say so with --without-tls",
        )
    if cert is None and cert_key is not None:
        raise InputError("a key without its certificate", expected="--cert FILE.pem --cert-key FILE.pem")
    tls = None if cert is None else tls_context(cert, cert_key)
    if releases is not None and not releases.is_dir():
        raise InputError("there is no such folder", where=str(releases))
    token = secrets.token_urlsafe(32)
    names = {"127.0.0.1", "localhost", "[::1]"} if host in _LOOPBACK else set()
    outside = {one.lower() for one in name or []}
    names |= outside
    with open_ledger(url, key) as ledger:
        book = Book(ledger, releases)
        try:
            server = Server(
                (host, port),
                lambda bound: Site(
                    book, Gate(token, names, bound, outside=outside if without_tls else None, tls=tls is not None)
                ),
                tls,
            )
        except OSError as error:
            raise RunError(
                f"cannot listen on {host} port {port}: {error.strerror}", remedy="choose another --port"
            ) from error
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log = logging.getLogger("confide.ledger.serve")
        log.addHandler(handler)
        log.setLevel(logging.WARNING if quiet else logging.INFO)
        log.propagate = False
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"INTERNAL  {ledger.where}")
        typer.echo(f"open   {'http' if tls is None else 'https'}://{(name or [shown])[0]}:{server.server_port}/")
        typer.echo(f"token  {token}")
        typer.echo("Ctrl-C ends it; nothing is written to the ledger")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped")
        finally:
            server.server_close()
            log.removeHandler(handler)
