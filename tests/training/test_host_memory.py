"""Freed memory stays with the process while a CPU trains, and goes back to the system after."""

from __future__ import annotations

import subprocess
import sys

import torch

from confide.training.host_memory import kept_pages

# In a process of its own: what other tests left behind in this one must not be counted.
SCRIPT = """
import resource, torch
from confide.training.host_memory import kept_pages

def faults(blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(12_000_000)  # 48 MB: more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside = faults(4)
with kept_pages(torch.device("cpu")):
    faults(1)
    with kept_pages(torch.device("cpu")):
        faults(1)
    inside = faults(4)  # leaving the inner block changed nothing
print(outside, inside, faults(4))
"""


def test_pages_are_asked_for_once_and_given_back():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    outside, inside, after = map(int, done.stdout.split())
    if sys.platform.startswith("linux"):  # whatever the size of a page is here
        assert inside <= outside / 10 and after >= outside / 10


def test_other_devices_and_other_libraries_are_left_alone(monkeypatch):
    with kept_pages(torch.device("meta")):
        pass
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    with kept_pages(torch.device("cpu")):
        pass
