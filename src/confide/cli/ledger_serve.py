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
    from confide.cli.web.server import Server, Site

    if host not in _LOOPBACK and not name:
        raise InputError(
            f"{host} can be reached from other machines",
            expected="--name HOST, the name under which browsers will reach it",
            remedy="put it behind a web server with TLS; the token and the figures travel in clear without",
        )
    if releases is not None and not releases.is_dir():
        raise InputError("there is no such folder", where=str(releases))
    token = secrets.token_urlsafe(32)
    names = {"127.0.0.1", "localhost", "[::1]"} if host in _LOOPBACK else set()
    names |= {one.lower() for one in name or []}
    with open_ledger(url, key) as ledger:
        book = Book(ledger, releases)
        try:
            server = Server((host, port), lambda bound: Site(book, Gate(token, names, bound)))
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
        typer.echo(f"open   http://{(name or [shown])[0]}:{server.server_port}/")
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
