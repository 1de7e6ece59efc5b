"""Workers' states between rounds: left where they were made, or copied to several nodes."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from hqde.backends.on_ray.seats import Kept, Running
from hqde.backends.on_ray.weight_store import LostError, WeightStore


class States:
    """Keeps packed ``WorkerState`` objects.

    Args:
        store: holds the copies; ``None`` leaves each state where its worker put it.
    """

    def __init__(self, store: WeightStore | None) -> None:
        self._store = store

    def keep(self, run: Running, last: Running | None) -> Kept:
        """What a worker has become; the state it had two rounds ago is of no more use."""
        worker, round_index = run.order.worker_id, run.order.round_index
        if self._store is None:
            return Kept(run.state)
        if last is not None and last.before is not None and last is not run:
            self._store.drop([last.before.name])
        name = f"state of worker {worker} after round {round_index}"
        self._store.keep(name, round_index, run.state)
        return Kept(run.state, name)

    def resolved(self, kept: Kept | None) -> Any:
        """A reference to a state, to a sound copy of it where there are several."""
        if kept is None or self._store is None or kept.name not in self._store.cells:
            return None if kept is None else kept.ref
        return ray.put(self._store.read(kept.name))

    def is_kept(self, kept: Kept) -> bool:
        """Whether a state can still be read somewhere."""
        try:
            ray.get(self.resolved(kept), timeout=10)
        except (RayError, LostError):
            return False
        return True
