"""Put the measured figures of the ledger into its page: python benchmarks/ledger/report.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "ledger.md"
BEGIN, END = "<!-- made by benchmarks/ledger/report.py -->", "<!-- end of what it made -->"


def both(value: dict[str, Any]) -> str:
    """Return CPU and wall seconds."""
    cpu, wall = value["cpu_s"], value["wall_s"]
    if isinstance(cpu, dict):
        return f"{cpu['median']:.2f} ({cpu['max']:.2f}) s CPU, {wall['median']:.1f} s"
    return f"{cpu:.2f} s CPU, {wall:.1f} s" if cpu < 5 else f"{cpu:.0f} s CPU, {wall:.0f} s"


def one(found: dict[str, Any], wall: str, cpu: str) -> str:
    """Return milliseconds."""
    text = f"{found[wall]:.1f} ms"
    return text + (f" ({found[cpu]:.1f} ms CPU)" if cpu in found else "")


def scale(results: dict[str, Any]) -> str:
    """Return the table of ten million contributors."""
    stores = [("SQLite", results["sqlite"]), ("PostgreSQL 15", results["postgresql"])]
    rows: list[tuple[str, Any, str]] = [
        ("contributors", lambda r: f"{r['people']:,}", "10,000,000"),
        ("create from a Parquet file of ids", lambda r: both(r["create"]), "60 s"),
        ("highest memory so far, creating / after A", lambda r: memory(r), "512 MB in A"),
        (
            "release on everybody, first (prices 103 classes, stores who is in)",
            lambda r: both(r["everybody_first"]),
            "",
        ),
        ("release on everybody, again", lambda r: both(r["everybody_again"]), "1 s CPU, 2 s; PostgreSQL 10 s"),
        (
            "workload A: releases on 12 sets of 2 million, median (worst)",
            lambda r: f"{both(r['workload_a'])}, {r['workload_a']['releases']} releases",
            "1 s CPU, 2 s; PostgreSQL 10 s",
        ),
        (
            "workload B: random cohorts of 2 million on top",
            lambda r: f"{both(r['workload_b'])}, {r['workload_b']['releases']} releases",
            "reported",
        ),
        (
            "spend state after A / after B",
            lambda r: f"{r['workload_a']['spend_state_mb']:.0f} / {r['workload_b']['spend_state_mb']:.0f} MB",
            "200 MB",
        ),
        ("index of contributors", lambda r: f"{r['workload_a']['token_index_mb']:.0f} MB", "400 MB"),
        ("one balance", lambda r: one(r["one_contributor"], "balance_ms", "balance_cpu_ms"), "5 ms"),
        ("tight epsilon, warm", lambda r: one(r["one_contributor"], "tight_warm_ms", "tight_warm_cpu_ms"), "50 ms"),
        ("tight epsilon, cold", lambda r: one(r["one_contributor"], "tight_cold_ms", ""), ""),
        (
            "verify everything",
            lambda r: both(r["verify"]) + f", {r['verify']['peak_mb']:.0f} MB" if "verify" in r else "not measured",
            "",
        ),
        ("load average (2 cores) before and after", lambda r: loads(r), ""),
    ]
    head = "| | " + " | ".join(name for name, _ in stores) + " | wanted |\n|" + " --- |" * (len(stores) + 2) + "\n"
    return head + "".join(
        f"| {what} | " + " | ".join(cell(result) for _, result in stores) + f" | {wanted} |\n"
        for what, cell, wanted in rows
    )


def where(results: dict[str, Any]) -> str:
    """Say on which machine, with which program, and at which state of the code."""
    said = [
        f"{name}: commit {found['commit']}, Python {found['python']}, {found['cpus']} cores"
        for name, found in (("SQLite", results["sqlite"]), ("PostgreSQL 15", results["postgresql"]))
    ]
    return "\n" + "; ".join(said) + ".\n\n"


def memory(found: dict[str, Any]) -> str:
    """Return peak memory of creation and after workload A."""
    return f"{found['create']['peak_mb']:.0f} / {found['workload_a']['peak_mb']:.0f} MB"


def loads(found: dict[str, Any]) -> str:
    """Return the load averages over one minute."""
    if "load_before" not in found:
        return f"- / {found['load'][0]:.0f}" if "load" in found else "-"
    return f"{found['load_before'][0]:.1f} / {found['load'][0]:.1f}"


def faults(results: dict[str, Any]) -> str:
    """Return the table of the kill test."""
    stores = [("SQLite", results["sqlite"]), ("PostgreSQL 15", results["postgresql"])]

    def lost(row: dict[str, Any], *words: str) -> str:
        return str(sum(n for name, n in row["faults"].items() if name.startswith(words)))

    def plain(name: str) -> Any:
        return lambda r: f"{r.get(name, 0):,}"

    rows: list[tuple[str, Any]] = [
        ("seconds, writers at once", lambda r: f"{r['seconds']:.0f}, {r['writers at once']}"),
        ("writers killed", plain("writers killed")),
        ("sessions cut / server crashed", lambda r: f"{r.get('connections cut', 0)} / {r.get('server crashes', 0)}"),
        ("reservations", plain("reservations")),
        ("of them with people left out for lack of balance", plain("reservations with people left out")),
        ("journal entries replayed against the model", plain("journal entries replayed")),
        ("decisions about one person checked", plain("decisions about one person checked")),
        ("answers to writers checked", plain("answers checked")),
        ("**lost**", lambda r: lost(r, "lost")),
        ("**charged twice**", lambda r: lost(r, "charged twice")),
        ("**overspent** or admitted without balance", lambda r: lost(r, "overspent", "people admitted")),
        ("**given back after the start**", lambda r: lost(r, "freed")),
        ("any other disagreement with the model", lambda r: str(sum(r["faults"].values()))),
        ("largest tight epsilon of anybody (cap 8)", lambda r: f"{r['largest tight epsilon']:.2f}"),
    ]
    head = "| | " + " | ".join(name for name, _ in stores) + " |\n|" + " --- |" * (len(stores) + 1) + "\n"
    return head + "".join(f"| {what} | " + " | ".join(cell(r) for _, r in stores) + " |\n" for what, cell in rows)


def main() -> None:
    """Replace what stands between the marks."""
    results = json.loads((HERE / "results.json").read_text())
    table = json.loads((HERE / "faults.json").read_text())
    text = PAGE.read_text(encoding="utf-8")
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    made = (
        "\n\n**Killed at random** (`python benchmarks/ledger/kill.py`, `faults.json`):\n\n"
        + faults(table)
        + "\n**Ten million contributors**, 103 classes from the NIH entry counts (`python benchmarks/ledger/run.py "
        "--part scale`, then with `--postgresql`; `results.json`). Times are of the whole reserve, start and "
        "commit; CPU is that of our process, without the PostgreSQL server's:\n\n" + scale(results) + where(results)
    )
    PAGE.write_text(text[:start] + made + text[stop:], encoding="utf-8")


if __name__ == "__main__":
    main()
