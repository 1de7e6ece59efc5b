"""What balancers remember between rounds: plain numbers that go into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hqde.balance.splitting import Floats
from hqde.errors import PreconditionError

WINDOW = 5  # timings kept per worker: their median takes up a lasting change after three rounds
MAX_LOAD = 0.5  # a node's load counts up to here, so that a wrong reading is wrong by a factor of 2 at most


@dataclass(frozen=True)
class Timing:
    """What one worker's last round took.

    Attributes:
        num_samples: samples it worked through; 0 tells of the load alone.
        seconds: wall time it took for them; above 0.
        load: fraction in [0, 1] of its node's processors that *others* kept busy meanwhile.

    Raises:
        PreconditionError: a number out of range.
    """

    num_samples: int
    seconds: float
    load: float = 0.0

    def __post_init__(self) -> None:
        if self.num_samples < 0 or not 0 < self.seconds < math.inf:
            raise PreconditionError(
                f"a timing needs at least 0 samples and a finite time above 0, got {self.num_samples} "
                f"samples in {self.seconds} s"
            )
        if not 0 <= self.load <= 1:
            raise PreconditionError(
                f"node load is a fraction in [0, 1], got {self.load}; divide percents by 100"
            )


@dataclass(frozen=True)
class BalanceState:
    """Whose turn it is, and each worker's last timings; worker k at position k.

    Attributes:
        next_worker: where ``round_robin`` goes on.
        paces: for each worker its last timings, oldest first, at most ``WINDOW``: seconds per sample, as they
            would be on an idle node; empty for a worker that was never seen.
        loads: the last known load of each worker's node.

    Raises:
        PreconditionError: numbers that no balancer wrote.

    Example:
        >>> state = BalanceState().observe({0: Timing(100, 1.0), 1: Timing(100, 4.0, load=0.5)})
        >>> state.paces
        ((0.01,), (0.02,))
        >>> state.seconds_per_sample(3)  # worker 1's node is still half busy; worker 2 is new
        array([0.01 , 0.04 , 0.025])
    """

    next_worker: int = 0
    paces: tuple[tuple[float, ...], ...] = ()
    loads: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        known = [pace for worker in self.paces for pace in worker]
        sound = all(0 < pace < math.inf for pace in known) and all(0 <= load <= 1 for load in self.loads)
        if self.next_worker < 0 or len(self.paces) != len(self.loads) or not sound:
            raise PreconditionError(f"no balancer wrote this state, start with an empty one: {self}")

    def observe(self, timings: Mapping[int, Timing]) -> BalanceState:
        """Take in the timings of a round, by worker id; workers that are missing keep what is known of them.

        Raises:
            PreconditionError: a negative worker id.
        """
        if min(timings, default=0) < 0:
            raise PreconditionError(f"worker ids count from 0, got a timing of worker {min(timings)}")
        size = max([len(self.paces), *(worker + 1 for worker in timings)])
        paces = [*self.paces, *[()] * (size - len(self.paces))]
        loads = [*self.loads, *[0.0] * (size - len(self.loads))]
        for worker, timing in timings.items():
            loads[worker] = float(timing.load)
            if timing.num_samples:
                idle = timing.seconds / timing.num_samples * _free(timing.load)
                paces[worker] = (*paces[worker], float(idle))[-WINDOW:]
        return replace(self, paces=tuple(paces), loads=tuple(loads))

    def forget(self, worker: int) -> BalanceState:
        """Drop what is known of a worker, for one that went on on another machine."""
        if worker >= len(self.paces):
            return self
        paces, loads = list(self.paces), list(self.loads)
        paces[worker], loads[worker] = (), 0.0
        return replace(self, paces=tuple(paces), loads=tuple(loads))

    def seconds_per_sample(self, num_workers: int) -> Floats:
        """(n,) predicted seconds per sample: the median timing, slowed by the last load of the worker's node.

        The median is taken of logarithms, so that an even number of timings gives the geometric mean. From
        the third timing on, one wild one leaves it within the range of the others. A worker never seen counts
        as the median of those that were; before any timing everybody takes one second.
        """
        known = {
            worker: math.exp(np.median(np.log(paces))) / _free(self.loads[worker])
            for worker, paces in enumerate(self.paces[:num_workers])
            if paces
        }
        usual = float(np.median(list(known.values()))) if known else 1.0
        return np.array([known.get(worker, usual) for worker in range(num_workers)])

    def free(self, num_workers: int) -> Floats:
        """(n,) fraction of each worker's node that others leave free, by the last load, at least 1/2."""
        return np.array([_free(load) for load in (*self.loads, *[0.0] * num_workers)[:num_workers]])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, from which `from_dict` makes the same state, bit for bit."""
        return {
            "next_worker": self.next_worker,
            "paces": [list(paces) for paces in self.paces],
            "loads": list(self.loads),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> BalanceState:
        """The state that `to_dict` wrote.

        Raises:
            PreconditionError: a field is missing or unknown, or holds what no balancer wrote.
        """
        if set(saved) != {"next_worker", "paces", "loads"}:
            raise PreconditionError(
                f"the state of a balancer has next_worker, paces and loads, got {', '.join(sorted(saved))}"
            )
        try:
            paces = tuple(tuple(own) for own in saved["paces"])
            return cls(saved["next_worker"], paces, tuple(saved["loads"]))
        except TypeError as problem:
            raise PreconditionError(
                f"no balancer wrote this state, start with an empty one: {saved}"
            ) from problem


def _free(load: float) -> float:
    return 1 - min(load, MAX_LOAD)
