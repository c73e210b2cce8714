"""Put the measured figures of the ledger into its page: python benchmarks/ledger/report.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "ledger_operator.md"
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
            "2 s CPU",
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
    """Say at which state of the code and on what, and what a later run under load gave."""
    said = [
        f"{name}: commit {found['commit']}, Python {found['python']}, {found['cpus']} cores"
        for name, found in (("SQLite", results["sqlite"]), ("PostgreSQL 15", results["postgresql"]))
    ]
    text = "\n" + "; ".join(said) + "."
    if (again := results.get("postgresql_again")) is not None:
        text += (
            f" PostgreSQL again at commit {again['commit']}, quicker in prices, at a load of "
            f"{again['load'][0]:.0f}: "
            f"first release on everybody {both(again['everybody_first'])}; again {both(again['everybody_again'])}; "
            f"workload A {both(again['workload_a'])}; workload B {both(again['workload_b'])}."
        )
    return text + "\n\n"


def admission(results: dict[str, Any]) -> str:
    """Return the table of how much of a cap the rule lets in."""
    mixes = (
        *(("50 equal", "50 equal, noise 1"), ("one large, many small", "one large, many small")),
        *(("high noise", "noise 5"), ("noise 0.8", "noise 0.8"), ("low noise", "noise 0.6")),
    )
    found = {(row["cap"], row["mix"]): row["ratio"] for row in results["admission"]}
    text = "| cap | " + " | ".join(title for _, title in mixes) + " |\n|" + " --- |" * 6 + "\n"
    for cap in dict.fromkeys(row["cap"] for row in results["admission"]):
        ratios = [found[cap, name] for name, _ in mixes]
        cells = ["the large one alone does not fit" if one is None else f"{one:.2f}" for one in ratios]
        text += f"| {cap:g} | " + " | ".join(cells) + " |\n"
    return (
        "\n\n**How much of a cap the rule lets in** (`python benchmarks/ledger/run.py --part admission`). Ratio of the "
        "cap to the tight epsilon (delta 1e-6) of the sequence that just fills it (wanted: at most 1.25 for the first "
        "two):\n\n" + text
    )


def designs(results: dict[str, Any]) -> str:
    """Return the table of other rules for small caps: the ledger's first, then the best for each plan."""
    rows = results["designs"]
    plans = (("small", "noise 1"), ("noise 0.8", "noise 0.8"), ("low noise", "noise 0.6"))
    text = "| cap | rule | " + " | ".join(title for _, title in plans) + " |\n|" + " --- |" * 5 + "\n"
    for cap in dict.fromkeys(row["cap"] for row in rows):
        of = [row for row in rows if row["cap"] == cap]
        shown = [("the ledger's", of[0])]
        for name, title in plans:
            shown.append((f"best for {title}", min(of, key=lambda row: row[name] or float("inf"))))
        for what, row in shown:
            figures = " | ".join("nothing fits" if row[name] is None else f"{row[name]:.2f}" for name, _ in plans)
            text += f"| {cap:g} | {what} | {figures} |\n"
    return (
        f"\n**Other rules for small caps** (`run.py --part designs`): {len(rows) // 2 - 1} choices of two orders, of "
        "their shares of delta and of the share set apart, for each cap; twenty equal releases:\n\n" + text
    )


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
        admission(results)
        + designs(results)
        + "\n**Killed at random** (`python benchmarks/ledger/kill.py`, `faults.json`):\n\n"
        + faults(table)
        + "\n**Ten million contributors**, 103 classes from the NIH entry counts (`python benchmarks/ledger/run.py "
        "--part scale`, then with `--postgresql`; `results.json`). Times are of the whole reserve, start and "
        "commit; CPU is that of our process, without the PostgreSQL server's:\n\n" + scale(results) + where(results)
    )
    PAGE.write_text(text[:start] + made + text[stop:], encoding="utf-8")


if __name__ == "__main__":
    main()
