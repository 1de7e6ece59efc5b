"""Tasks side by side in threads of this process."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from hqde.backends.base import StepReport
from hqde.backends.cores import Seating

T = TypeVar("T")

# How often the waiting thread looks whether there is progress to tell of.
LOOK_S = 0.05


class Stopped(BaseException):
    """Raised in a task that is no longer wanted. Not an ``Exception``: no task may take it for its own."""


class Lanes(Generic[T]):
    """Runs tasks in threads, each thread with so many torch threads.

    Tasks are begun in order. The first exception of any kind stops the others at their next ``go_on`` and is
    raised to whoever iterates; so does Ctrl-C, and so does no longer iterating. No thread outlives ``run``.

    Args:
        seating: threads that work, and torch threads of each.

    Example:
        >>> lanes = Lanes(Seating(2, 1))
        >>> sorted(lanes.run([lambda: 1, lambda: 4, lambda: 9]))
        [1, 4, 9]
    """

    def __init__(self, seating: Seating) -> None:
        self._seating = seating
        self._stop = threading.Event()

    def go_on(self) -> None:
        """For tasks to call now and then.

        Raises:
            Stopped: nobody waits for the result any more.
        """
        if self._stop.is_set():
            raise Stopped

    def run(
        self, tasks: Sequence[Callable[[], T]], *, meanwhile: Callable[[], None] | None = None
    ) -> Iterator[T]:
        """The tasks' results, in the order in which they come.

        Args:
            tasks: run in threads.
            meanwhile: called in this thread again and again while it waits, and before each result.
        """
        todo = deque(tasks)
        done: queue.SimpleQueue[tuple[bool, T | BaseException]] = queue.SimpleQueue()
        before = torch.get_num_threads()
        threads = [
            threading.Thread(target=self._work, args=(todo, done), name=f"hqde-lane-{lane}", daemon=True)
            for lane in range(min(self._seating.lanes, len(tasks)))
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in tasks:
                yield self._next(done, meanwhile)
        finally:
            self._stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            # A lane's number of threads would be that of every thread that starts from now on.
            torch.set_num_threads(before)

    def _next(
        self, done: queue.SimpleQueue[tuple[bool, T | BaseException]], meanwhile: Callable[[], None] | None
    ) -> T:
        while True:
            try:
                sound, value = done.get(timeout=None if meanwhile is None else LOOK_S)
            except queue.Empty:
                if meanwhile is not None:
                    meanwhile()
                continue
            if not sound:
                assert isinstance(value, BaseException)
                raise value
            if meanwhile is not None:
                meanwhile()
            return value  # type: ignore[return-value]

    def _work(
        self, todo: deque[Callable[[], T]], done: queue.SimpleQueue[tuple[bool, T | BaseException]]
    ) -> None:
        if self._seating.threads:
            torch.set_num_threads(self._seating.threads)
        while not self._stop.is_set():
            try:
                task = todo.popleft()
            except IndexError:
                return
            try:
                done.put((True, task()))
            except Stopped:
                return
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
                done.put((False, error))
                return


class Board:
    """Where workers write how far they are, and one thread reads it out."""

    def __init__(self, on_step: StepReport | None) -> None:
        self.steps: dict[int, tuple[int, int]] = {}
        self._told: dict[int, tuple[int, int]] = {}
        self._on_step = on_step

    def tell(self) -> None:
        """Tell of those that moved on."""
        if self._on_step is None:
            return
        for worker_id, at in list(self.steps.items()):
            if self._told.get(worker_id) != at:
                self._told[worker_id] = at
                self._on_step(worker_id, *at)
