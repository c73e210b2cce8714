"""Run studies of the gallery in full, keep their findings with the package, and write the page of the documentation.

    python benchmarks/studies/run.py                       # the page alone, from the findings that are kept
    python benchmarks/studies/run.py NAME [NAME ...]       # run these, keep them, write the page
    python benchmarks/studies/run.py NAME --data FILE      # a study that needs the paper's own data
    python benchmarks/studies/run.py NAME --size cpu       # less, where a study has such a size; the page says so

Every finding is kept as soon as its study ends, with machine, versions and date.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from confide.studies import gallery  # noqa: E402

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "src" / "confide" / "studies" / "gallery" / "findings"
COMPARATOR = Path(__file__).with_name("opacus_pneumonia.json")
PAGE = ROOT / "docs" / "gallery.md"
# By how much the study `pneumonia` was meant to surpass plain Opacus.
GOAL = 0.02


def page() -> str:
    """Return the page from the findings that are kept."""
    lines = [
        "# Papers' claims, run again",
        "",
        "Made by `python benchmarks/studies/run.py` from the findings that come with the package. `confide studies`",
        "lists them, `confide studies run NAME --size full` runs one again. Claim and criterion were written before",
        "the run; a claim that does not hold here is reported as such. Intervals are named with their figures.",
        "",
        "| study | verdict | in one sentence |",
        "| --- | --- | --- |",
    ]
    kept = {name: gallery.kept_finding(name) for name in gallery.names()}
    for name, found in kept.items():
        verdict, why = ("not run yet", "") if found is None else (found.verdict, found.why)
        verdict += " (CPU size)" if found is not None and found.size == "cpu" else ""
        for data, other in gallery.kept_beside(name).items():
            why += f" On other data ({data}): {other.verdict}."
        lines.append(f"| [{name}](#{name}) | {verdict} | {why} |")
    for name, found in kept.items():
        study = gallery.study(name)
        lines += ["", f"## {name}", "", f"**{study.title}.** {study.paper}.", "", f"*Claim.* {study.claim}", ""]
        lines += [f"*Holds here if.* {study.criterion}", ""]
        lines += [f"*Data.* {'**Simulation.** ' if study.simulation else ''}{study.data}.", ""]
        if found is None:
            lines.append("No full run has been kept.")
            continue
        if found.data != study.data:
            lines += [f"*Run on.* {found.data}", ""]
        if found.size == "cpu":
            lines += [f"*At the lesser size for a CPU.* {study.cpu}", ""]
        lines += figures(found)
        if name == "pneumonia":
            lines += comparator(found)
        lines += ["", made(found)]
        for other in gallery.kept_beside(name).values():
            lines += ["", f"*The same on other data, beside it:* {other.data}.", "", *figures(other), "", made(other)]
    return "\n".join(lines) + "\n"


def figures(found: gallery.Finding) -> list[str]:
    """Return the verdict and the table of a finding."""
    size = " (CPU size)" if found.size == "cpu" else ""
    lines = [f"*Verdict: {found.verdict}{size}.* {found.why}", ""]
    lines += ["| figure | paper | here | interval | |", "| --- | --- | --- | --- | --- |"]
    for f in found.figures:
        ends = "" if f.low is None or f.high is None else f"{f.low:.4g} to {f.high:.4g}"
        paper = "" if f.paper is None else f"{f.paper:.4g}" if isinstance(f.paper, float) else str(f.paper)
        lines.append(f"| {f.what} | {paper} | {f.ours:.4g} | {ends} | {f.note} |")
    return lines


def made(found: gallery.Finding) -> str:
    """Return how long it took, where and when."""
    torch = f", torch {found.versions['torch']}" if "torch" in found.versions else ""
    return f"{found.seconds:g} s on {found.machine}{torch}, {found.date}."


def comparator(found: gallery.Finding) -> list[str]:
    """Return what plain Opacus reached beside the study `pneumonia`, where it was run."""
    if not COMPARATOR.exists():
        return [
            "",
            "*Beside it.* Plain Opacus with ResNet-18-GN was not run: `benchmarks/studies/opacus_pneumonia.py`.",
        ]
    said = []
    for row in sorted(json.loads(COMPARATOR.read_text())["rows"], key=lambda row: -row["epsilon"]):
        ours = next(f for f in found.figures if f.what == f"test AUC, epsilon {row['epsilon']:g}")
        auc, low, high = row["auc"]
        ends = "" if low is None else f"{low:.3f} to {high:.3f}, "
        seeds = f"{row['seeds']} seeds" if row["seeds"] > 1 else "one seed"
        said.append(
            f"test AUC {auc:.3f} ({ends}{seeds}) at epsilon {row['epsilon']:g}, {ours.ours - auc:+.3f} for ours"
            + ("" if ours.ours - auc >= GOAL else f" (less than the goal of {GOAL:+.2f})")
        )
    one = row
    width = "" if one["width"] == 64 else f" at {one['width']} of its 64 channels, as fits on a CPU"
    tried = ", ".join(map(str, one["validation"]))
    rate = f"learning rate chosen among {tried} on validation images" if tried else "learning rate not tuned"
    return [
        "",
        f"*Beside it.* Plain Opacus {one['opacus']} with ResNet-18 and group norm{width} ({one['epochs']} epochs, "
        f"batch {one['batch']}, {rate}): {'; '.join(said)} "
        f"(`benchmarks/studies/opacus_pneumonia.py`, {one['machine']})."
        + (" A weaker setting than the whole net with a tuned rate, which was not run." if width else "")
        + " Ours was chosen among far more recipes (above), on the same validation images.",
    ]


def say(line: str) -> None:
    """Print one line of progress."""
    print(line, flush=True)


def main() -> None:
    """Run what was asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="full", choices=("cpu", "full"), help="cpu: less, where a study has it")
    parser.add_argument("--beside", help="short name of other data: keep the finding beside the one that decides")
    parser.add_argument("--out", type=Path, default=FINDINGS, help="where findings are kept")
    wanted = parser.parse_args()
    if wanted.device.startswith("cuda"):
        import torch

        # The rehearsal compares gradients of single entries across batches, closer than TF32 rounds.
        torch.backends.cudnn.allow_tf32 = False
    for name in wanted.names:
        context = gallery.Context(
            size=wanted.size,
            cache=ROOT / "build" / "features",
            data=wanted.data,
            device=wanted.device,
            say=lambda line: print(line, flush=True),
        )
        found = gallery.run_study_of_gallery(gallery.study(name), context)
        wanted.out.mkdir(parents=True, exist_ok=True)
        target = name if wanted.beside is None else f"{name}@{wanted.beside}"
        (wanted.out / f"{target}.json").write_text(json.dumps(found.to_dict(), indent=1) + "\n")
        print(f"{name}: {found.verdict}. {found.why} ({found.seconds:g} s)", flush=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
