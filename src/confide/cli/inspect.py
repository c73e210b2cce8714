"""``confide verify``, ``report``, ``risk`` and ``doctor``: commands that read and never spend."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from confide._files import write_atomic
from confide.errors import VerificationError


def run_verify(release: Path, *, ledger: str | None, as_json: bool) -> None:
    """Check a release and print every check; a difference raises VerificationError (exit code 4)."""
    from confide.ledger import Ledger
    from confide.release import verify

    url = ledger or os.environ.get("CONFIDE_LEDGER")
    opened = Ledger.open(url) if url else None
    try:
        report = verify(release, ledger=opened)
    finally:
        if opened is not None:
            opened.close()
    checks = (*report.checks, page_check(report.path))
    if as_json:
        print(json.dumps({"release": str(report.path), "ok": report.ok, "checks": [vars(c) for c in checks]}, indent=1))
        return
    unasked = [check.what for check in checks if not check.asked]
    table = Table(title=f"{release.name}: nothing differs" + (" in what could be compared" if unasked else ""))
    table.add_column("checked")
    table.add_column("")
    table.add_column("found")
    for what, status, detail in grouped(checks):
        table.add_row(what, status, detail)
    console = Console()
    console.print(table)
    if opened is None and "ledger" in unasked:
        console.print(
            "The ledger was not asked: give --ledger URL to check that it holds this release.", highlight=False
        )


def page_check(folder: Path) -> Any:
    """Make the report page again; only the version that wrote it can make the same bytes."""
    from confide.release import Release
    from confide.release.verify import Check

    loaded = Release.load(folder)
    made_by, here = loaded.certificate.versions.get("confide"), _version("confide")
    if "report.html" not in loaded.certificate.artefacts:
        return Check("report.html", True, "there is none in this release", asked=False)
    if made_by != here:
        return Check("report.html", True, f"written by confide {made_by}, this is {here}: not made again", asked=False)
    if _page_of(loaded) == loaded.file("report.html").read_text(encoding="utf-8"):
        return Check("report.html", True, "made again from the certificate: the same page")
    if "model.safetensors" not in loaded.certificate.artefacts:
        return Check("report.html", True, "holds figures of the released table: not made again", asked=False)
    raise VerificationError(
        "report.html does not say what the certificate says",
        where=str(loaded.path / "report.html"),
        expected="the page that this version makes from certificate and study file",
        remedy="make the page yourself with `confide report RELEASE` and ask the publisher about theirs",
    )


def grouped(checks: Any) -> list[tuple[str, str, str]]:
    """Checks of the same kind over many classes as one line; `--json` has them all."""
    rows: list[tuple[str, str, str]] = []
    groups: dict[tuple[str, bool], list[str]] = {}
    for check in checks:
        groups.setdefault((check.what.split(", class")[0], check.asked), []).append(check.detail)
    for (kind, asked), details in groups.items():
        status = "ok" if asked else "not asked"
        if len(details) == 1:
            rows.append((kind, status, details[0]))
        else:
            rows.append((f"{kind}, {len(details)} classes", status, f"first: {details[0]}; last: {details[-1]}"))
    return rows


def run_report(release: Path, *, output: Path | None) -> None:
    """Write the report of a release from its certificate and study file alone."""
    from confide.release import Release, outside_releases

    loaded = Release.load(release)
    target = output or Path(f"{loaded.path.name}-report.html")
    outside_releases(target)
    write_atomic(target, _page_of(loaded))
    Console().print(f"wrote {target}", highlight=False, soft_wrap=True)


def _page_of(loaded: Any) -> str:
    from confide.report import release_report, table_release_report

    study = loaded.path / "study.toml"
    # the page cannot name its own hash, so it was made from a certificate without it
    others = {name: digest for name, digest in loaded.certificate.artefacts.items() if name != "report.html"}
    certificate = loaded.certificate.model_copy(update={"artefacts": others})
    text = study.read_text(encoding="utf-8") if study.exists() else ""
    marginals = loaded.path / "marginals.json"
    if certificate.kind == "table" and marginals.exists():
        return table_release_report(certificate, text, json.loads(marginals.read_text(encoding="utf-8")))
    return release_report(certificate, text)


def run_doctor(*, as_json: bool) -> None:
    """Print versions, extras and devices."""
    found: dict[str, Any] = {
        "confide": _version("confide"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    found["cores"] = os.cpu_count()
    packages = ("numpy", "scipy", "polars", "pydantic", "sqlalchemy", "rich", "typer")
    found["packages"] = {name: _version(name) for name in packages}
    extras = {
        "train": ("torch", "safetensors"),
        "imaging": ("PIL",),
        "postgres": ("psycopg",),
        "verify": ("dp_accounting", "jsonschema"),
        "secure": ("cryptography",),
    }
    found["extras"] = {
        extra: all(importlib.util.find_spec(module) is not None for module in modules)
        for extra, modules in extras.items()
    }
    if found["extras"]["train"]:
        import torch

        found["torch"] = torch.__version__
        found["threads"] = torch.get_num_threads()
        found["device"] = "cpu"
        if torch.cuda.is_available():
            found["device"] = torch.cuda.get_device_name(0)
        from confide.training.engine.choice import chosen

        found |= chosen("auto")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(title="confide doctor", show_header=False)
    for name in (
        "confide",
        "python",
        "machine",
        "cores",
        "torch",
        "threads",
        "device",
        "engine",
        "precision",
        "kernels",
        "noise",
        "memory",
        "processes",
    ):
        if name in found:
            table.add_row(name, str(found[name]))
    for name, version in found["packages"].items():
        table.add_row(name, version or "missing")
    for extra, present in found["extras"].items():
        table.add_row(f"extra {extra}", "installed" if present else f"absent: pip install 'confide\\[{extra}]'")
    Console().print(table)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
