"""The secrets of a run: coins and noise from one key that only moves forward.

>>> keys = RunKeys.start(bytes(32))
>>> first = keys.noise_key()
>>> _ = keys.advance()
>>> keys.step, keys.noise_key() != first
(1, True)

Each step uses a key of its own; moving on replaces it by a one-way function of itself. A checkpoint holds only the
current key, so nobody who finds it can work out the noise that was added before, and subtract it. The coins of the
sampler are keyed by the step key of the start of their stretch of `COIN_STEPS` steps: whoever holds a checkpoint could
tell who was drawn in the stretch it belongs to and who will be drawn later. A checkpoint is therefore private data:
mode 0600, outside of the release, deleted when the release is committed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from confide.contributors import derive, new_key, ratchet
from confide.errors import InputError

# Steps between new coin keys: each costs a pass over all entries and bounds what a checkpoint tells of the past.
COIN_STEPS = 50


def key_from_seed(seed: int) -> bytes:
    """Return the run key of a user-set seed: repeatable, hence for testing only."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError("a seed must be a whole number of 0 or more", where="seed")
    return hashlib.blake2b(str(seed).encode(), digest_size=32, person=b"confide seed").digest()


@dataclass
class RunKeys:
    """Current keys of a run.

    Attributes
    ----------
    step : int
        The step that comes next.
    current : bytes
        Key of this step.
    coins : bytes
        Key of the sampler's coins in this stretch.
    subset : bytes
        Key of the fixed random subsets of entries (whole run).
    fingerprint : bytes
        Key of the data fingerprint (whole run).
    """

    step: int
    current: bytes
    coins: bytes
    subset: bytes
    fingerprint: bytes

    @classmethod
    def start(cls, run_key: bytes | None = None) -> RunKeys:
        """Derive the keys of step 0; without a run key the operating system gives one."""
        root = new_key() if run_key is None else run_key
        first = derive(root, "run")
        return cls(0, first, derive(first, "coins"), derive(root, "subset of entries"), derive(root, "fingerprint"))

    def advance(self) -> bool:
        """Go to the next step; True when the sampler's coins have a new key."""
        self.current, self.step = ratchet(self.current), self.step + 1
        if self.step % COIN_STEPS:
            return False
        self.coins = derive(self.current, "coins")
        return True

    def noise_key(self) -> bytes:
        """Return the noise key of this step, 32 bytes."""
        return derive(self.current, "noise")

    def model_seed(self) -> int:
        """Return the seed of this step's dropout and other random layers."""
        return int.from_bytes(derive(self.current, "layers", 8), "little") >> 1

    def method_seed(self) -> int:
        """Return the seed of noise that a method adds of its own in this step (post-processing)."""
        return int.from_bytes(derive(self.current, "methods", 8), "little") >> 1

    def to_dict(self) -> dict[str, str | int]:
        """Return what a checkpoint keeps; never the run key, from which past noise would follow."""
        texts = {name: getattr(self, name).hex() for name in ("current", "coins", "subset", "fingerprint")}
        return {"step": self.step, **texts}

    @classmethod
    def from_dict(cls, values: dict[str, str | int]) -> RunKeys:
        """Read what `to_dict` gave."""
        texts = {name: bytes.fromhex(str(values[name])) for name in ("current", "coins", "subset", "fingerprint")}
        return cls(int(values["step"]), **texts)
