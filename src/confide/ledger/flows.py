"""What one flow of information says, how much it can carry at most, and the runner that checks a derived release.

>>> from confide.accounting import Gaussian
>>> round(bits(Gaussian(noise_multiplier=2.0).guarantee()), 2)     # mu = 1/2: at most mu^2 / 2 nats
0.18

The words are those of contextual integrity (sender, recipient, subject, attributes, purpose); the view that privacy is
the limiting of such flows, and that a flow computed from another adds nothing, follows Ziller et al., "Privacy: an
axiomatic approach" (Entropy 24:714, 2022).
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from confide._files import sha256_of
from confide.accounting import Guarantee
from confide.errors import InputError, RunError

CURVE = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)
_ORDERS = np.array([1.0 + 1e-3, 1.01, 1.1, 1.5, 2.0])


def bits(guarantee: Guarantee) -> float:
    """Return an upper bound on what a release tells about one contributor's data, in bits.

    The mutual information between everything about one contributor and the output, given everybody else, is at most
    the largest Kullback-Leibler divergence of the output with the contributor from the output without (for any prior:
    the mean divergence from a mixture is at most that from any fixed distribution). That divergence is at most the
    dominating pair's, and at most every Renyi divergence of order above 1.
    """
    rdp = guarantee.rdp(_ORDERS)
    pure = guarantee.pure_epsilon
    nats = min(float(np.min(rdp)), pure, pure * pure / 2 if math.isfinite(pure) else math.inf)
    return nats / math.log(2)


@dataclass(frozen=True)
class Flow:
    """One row of the register of information flows.

    Attributes
    ----------
    release, sender, recipient, subject, purpose : str
        What flows, from whom, to whom, about whom, what for.
    attributes : tuple of str
        Which attributes are shown.
    state : str
        The state of its reservation, or "derived".
    parents : tuple of str
        SHA-256 of the releases that a derived one was made of.
    guarantees : tuple of Guarantee
        One a class of contributors; empty for a derived flow, which adds nothing to what its parents carry.
    """

    release: str
    sender: str
    recipient: str
    subject: str
    attributes: tuple[str, ...]
    purpose: str
    state: str
    created: str
    release_hash: str | None
    parents: tuple[str, ...] = ()
    reservation: str | None = None
    guarantees: tuple[Guarantee, ...] = field(default=(), repr=False)

    @property
    def derived(self) -> bool:
        """Whether it was made of other releases alone."""
        return bool(self.parents)

    def bits(self) -> float:
        """Return the bound in bits for the class with the largest; 0 for a derived flow and one that never began."""
        if self.state == "aborted":
            return 0.0  # given back before anything was read: nothing flows
        return max((bits(guarantee) for guarantee in self.guarantees), default=0.0)

    def tradeoff(self, fpr: Sequence[float] = CURVE) -> list[float]:
        """Return the least false negative rate of any membership test, the smallest of all classes."""
        if not self.guarantees or self.state == "aborted":
            return [1.0 - rate for rate in fpr]
        curves = [guarantee.tradeoff(np.asarray(fpr, dtype=float)) for guarantee in self.guarantees]
        return [float(value) for value in np.min(curves, axis=0)]

    def to_dict(self, *, bounds: bool = True) -> dict[str, Any]:
        """Return plain values for JSON, with the bounds unless they are not wanted."""
        names = [name for name in self.__dataclass_fields__ if name != "guarantees"]
        out: dict[str, Any] = {name: getattr(self, name) for name in names}
        out["mechanisms"] = sorted({part.kind for g in self.guarantees for part, _ in g.parts})
        out["derived"] = self.derived
        if bounds:
            out |= {"bits": self.bits(), "tradeoff": {"fpr": list(CURVE), "fnr": self.tradeoff()}}
        return out


@dataclass(frozen=True)
class NoPrivateAccess:
    """What the runner saw: the job opened its parents, the program's own files and its output, and nothing else."""

    parents: tuple[str, ...]
    output: str
    opened: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def run_derived(script: str | Path, *, parents: Sequence[str | Path], output: str | Path) -> NoPrivateAccess:
    """Run a Python script that may read its parents and write one output, and nothing else.

    The script runs in a process of its own, isolated from the user's environment; every file it opens, every
    connection and every process it would start is looked at before it happens, and anything beyond the parents, the
    Python installation and the output stops it. This catches mistakes, not an author who sets out to deceive: such a
    job belongs in a container without the data.

    Parameters
    ----------
    script : path
        Gets the parents and then the output as arguments (`sys.argv[1:]`).
    parents : sequence of path
        Released files.
    output : path
        The file it writes; it must not be there yet.

    Raises
    ------
    InputError
        A file is missing or the output exists.
    RunError
        The script failed, or reached for something else.
    """
    files, target = [Path(one).resolve() for one in parents], Path(output).resolve()
    for file in (Path(script).resolve(), *files):
        if not file.is_file():
            raise InputError("there is no such file", where=str(file))
    if not files or target.exists():
        raise InputError("a derived release needs at least one parent and a new output", where=str(target))
    before = [sha256_of(file) for file in files]
    facts = json.dumps(
        {"script": str(Path(script).resolve()), "parents": [str(f) for f in files], "output": str(target)}
    )
    # -I: no user site, no PYTHON* variables, no current folder on the path.
    found = subprocess.run(
        [sys.executable, "-I", str(Path(__file__).with_name("_guarded.py"))],
        input=facts,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    if found.returncode != 0:
        # The script's own words may quote what it read; only the guard's line is passed on.
        told = [line for line in found.stderr.splitlines() if line.startswith("confide: ")]
        raise RunError(
            told[-1].removeprefix("confide: ") if told else "the script of a derived release failed",
            where=str(script),
            expected="a script that reads its parents and writes its output only",
        )
    if not target.is_file() or [sha256_of(file) for file in files] != before:
        raise RunError("the script wrote no output, or changed a parent", where=str(script))
    return NoPrivateAccess(tuple(before), sha256_of(target), int(found.stdout.rsplit("\n", 2)[-2]))


def hash_of(content: bytes) -> str:
    """Return the SHA-256 of a content, as releases are named in the register."""
    return hashlib.sha256(content).hexdigest()
