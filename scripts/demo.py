"""The main job on real patients: plan, train, certify, verify and report; everything made anew under build/demo."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from confide.cli import main

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "examples" / "pbcseq.toml"


def run(*words: str) -> None:
    """Show a command and run it."""
    shown = " ".join(w.replace(str(ROOT) + "/", "") for w in words)
    print(f"\n$ confide {shown}\n", flush=True)
    code = main(list(words))
    if code:
        sys.exit(code)


def demo() -> None:
    """Run the commands of the tutorial one after the other."""
    home = ROOT / "build" / "demo"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    ledger = f"sqlite:///{home}/ledger.sqlite"
    began = time.monotonic()
    print("312 liver patients, 1,945 visits (named:pbcseq): predict death, with a guarantee for every patient.")
    run("ledger", "init", "--url", ledger, "--cap-epsilon", "8", "--cap-delta", "1e-4")
    run("plan", str(STUDY))
    run("train", str(STUDY), "--yes", "--ledger", ledger, "--output", str(home / "releases"))
    (release,) = (home / "releases").iterdir()
    run("verify", str(release), "--ledger", ledger)
    run("evaluate", str(release), "--members", "4", "--budgets", "1,4,8")
    from confide.release import Release
    from confide.report import guarantee_sentence

    print(f"\nDone in {time.monotonic() - began:.0f} s. {guarantee_sentence(Release.load(release).certificate)}\n")
    print(f"The report of the release, may leave:       {release / 'report.html'}")
    print(f"The internal report, must not leave:        {home / 'internal' / release.name / 'report.html'}")


if __name__ == "__main__":
    demo()
