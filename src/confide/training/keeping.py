"""What a run keeps in its checkpoint, what must be the same when it goes on, and how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from confide.errors import RunError
from confide.mechanisms import NoiseSource
from confide.planning import Plan
from confide.training.checkpoint import compare, read_checkpoint, write_checkpoint
from confide.training.clips import Clips
from confide.training.dataset import ContributorDataset
from confide.training.distributed import Ranks
from confide.training.engine import ClippingEngine
from confide.training.keys import RunKeys
from confide.training.methods.choice import MethodRun
from confide.training.taking import Taking


class Resumable:
    """The part of `PrivateRun` that writes and reads checkpoints."""

    plan: Plan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    engine: ClippingEngine
    testing_only: bool
    _keys: RunKeys
    _ranks: Ranks
    _data: ContributorDataset
    _rates: npt.NDArray[np.float64]
    _methods: MethodRun
    _clips: Clips
    _noise: str | NoiseSource
    _taking: Taking
    _stated: dict[str, None]
    _scheduler: Any
    _checkpoint: Path | None
    _record: dict[str, list[Any]]
    _nonfinite: int

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights and state of the optimiser."""
        return self.model.state_dict(), self.optimizer.state_dict()

    def _all_stated(self) -> list[str]:
        """The arithmetic of all steps: before resumes, and now."""
        return [*{**self._stated, self._taking.stated(self.engine, self._noise): None}]

    def _identity(self, keys: RunKeys) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        shapes = [(name, list(value.shape)) for name, value in self.model.named_parameters() if value.requires_grad]
        methods = self._methods.identity()
        return {
            **({} if methods is None else {"methods": methods}),
            "plan": self.plan.fingerprint(),
            "data": self._data.fingerprint(keys.fingerprint),
            "admitted": (self._rates > 0).tolist(),
            "model": repr(shapes),
            "optimizer": f"{type(self.optimizer).__name__} {sorted(self.optimizer.defaults.items())!r}",
            "noise": self._noise if isinstance(self._noise, str) else "given",
        }

    def _save(self) -> None:
        weights, moments = self._states()
        self._ranks.from_first(lambda: self._write(weights, moments))

    def _write(self, weights: dict[str, Any], moments: dict[str, Any]) -> None:
        state = {
            "keys": self._keys.to_dict(),
            "identity": self._identity(self._keys),
            "model": weights,
            "optimizer": moments,
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "record": self._record,
            "nonfinite": self._nonfinite,
            "testing_only": self.testing_only,
            "methods": self._methods.state(),
            "arithmetic": self._all_stated(),
            "rooms": list(self._taking.rooms),
        }
        assert self._checkpoint is not None
        write_checkpoint(self._checkpoint, state)

    def _restore(self) -> RunKeys:
        assert self._checkpoint is not None
        state = read_checkpoint(self._checkpoint, self._ranks)
        try:
            keys = RunKeys.from_dict(state["keys"])
            kept, record = state["identity"], state["record"]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError("the checkpoint is incomplete", where=str(self._checkpoint)) from error
        self._ranks.together(lambda: compare(kept, self._identity(keys), self._checkpoint))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None and state["scheduler"] is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        self._record, self._nonfinite = record, int(state["nonfinite"])
        self._stated = dict.fromkeys(state.get("arithmetic", ()))
        self._taking.rooms.update(tuple(room) for room in state.get("rooms", ()))
        if "methods" in state:
            self._methods.load(state["methods"])
            self._clips.place()
        self.testing_only = self.testing_only or bool(state["testing_only"])
        return keys
