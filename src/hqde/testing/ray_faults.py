"""Faults on order inside the actors of the Ray backend: real signals, real sleeps, real damaged bytes.

Not imported by ``hqde.testing``: it needs the extra ``ray``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hqde.backends.on_ray import WorkerActor
from hqde.training import Order, Worker


@dataclass(frozen=True)
class ActorFault:
    """One thing that goes wrong, once.

    Args:
        worker_id, round_index: whose round.
        kind: ``killed_before``, ``killed_during``, ``killed_after`` (SIGKILL), ``raises``, ``hangs``,
            ``slow`` (5 × its time), ``nan`` (one element of the delta) or ``corrupted`` (one bit of what is
            sent).
    """

    worker_id: int
    round_index: int
    kind: Literal[
        "killed_before", "killed_during", "killed_after", "raises", "hangs", "slow", "nan", "corrupted"
    ]

    @property
    def mark(self) -> str:
        """Name of the file that says it happened."""
        return f"{self.kind}-{self.worker_id}-{self.round_index}"


def faulty_actor(faults: Sequence[ActorFault], marks: Path) -> type[WorkerActor]:
    """An actor class with faults, for ``RayBackend(actor_class=…)``.

    Args:
        faults: at most one for each worker and round.
        marks: directory, seen by all actors, for a file per fault that happened; see ``injected``.
    """
    due = {(fault.worker_id, fault.round_index): fault for fault in faults}

    class FaultyActor(WorkerActor):
        _strikes_at_first_step = False

        def train_round(
            self, order: Any, bounds: Any, restore: bool, state: Any, *start: Any
        ) -> tuple[Any, ...]:
            self._damages = False
            report, after, *pieces = super().train_round(order, bounds, restore, state, *start)
            if self._damages:
                piece = np.array(pieces[0])
                piece.view(np.uint8)[len(piece) // 2] ^= 1
                pieces[0] = piece
            return report, after, *pieces

        def _train(self, worker: Worker, order: Order, bounds: Any) -> tuple[Any, ...]:
            kind = _due_now(due.get((order.worker_id, order.round_index)), marks)
            began = time.perf_counter()
            if kind == "killed_before":
                _kill()
            elif kind == "killed_during":
                self._strikes_at_first_step = True
            elif kind == "raises":
                raise RuntimeError("injected failure")
            elif kind == "hangs":
                time.sleep(3600)
            elif kind == "nan":
                worker = _PoisonedWorker(worker)  # type: ignore[assignment]
            result = super()._train(worker, order, bounds)
            if kind == "slow":
                time.sleep(4 * (time.perf_counter() - began))
            elif kind == "killed_after":
                threading.Timer(0.5, _kill).start()
            self._damages = kind == "corrupted"
            return result

        def _note(self, done: int, total: int) -> None:
            super()._note(done, total)
            if self._strikes_at_first_step:
                _kill()

    return FaultyActor


def injected(marks: Path) -> Counter[str]:
    """How often each kind of fault really happened."""
    return Counter(path.name.partition("-")[0] for path in marks.iterdir())


class _PoisonedWorker:
    """A worker whose next delta has one element that is not a number."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def train_round(self, order: Order, *, on_step: Any) -> Any:
        update = self._worker.train_round(order, on_step=on_step)
        update.delta[len(update.delta) // 2] = float("nan")  # type: ignore[index, arg-type]
        return update

    def state(self) -> Any:
        return self._worker.state()


def _due_now(fault: ActorFault | None, marks: Path) -> str | None:
    """The fault's kind, the first time it is asked for."""
    if fault is None:
        return None
    try:
        (marks / fault.mark).touch(exist_ok=False)
    except FileExistsError:
        return None
    return fault.kind


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
