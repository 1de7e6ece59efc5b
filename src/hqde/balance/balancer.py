"""Three policies: in turn, onto the least loaded, by predicted speed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hqde.balance.splitting import Floats, Numbers, shares_with_floor
from hqde.balance.state import BalanceState, Timing
from hqde.errors import ConfigError, PreconditionError, did_you_mean


class Balancer(ABC):
    """Work to workers; state in, state out. Deterministic: ties go to the lowest worker id.

    All policies keep the same state, so that a run can be resumed with another one.
    """

    name: ClassVar[str]

    @abstractmethod
    def assign(self, costs: Numbers, loads: Numbers, state: BalanceState) -> tuple[list[int], BalanceState]:
        """Items to workers.

        Args:
            costs: (m,) work of each item, in samples; e.g. the rows of a batch to predict.
            loads: (n,) seconds of work already queued at each worker.
            state: what was observed so far. Before any timing a sample counts as one second.

        Returns:
            the worker of each item, (m,) ids below n, and the next state.

        Raises:
            PreconditionError: no workers, or a cost or load that is negative or not finite.
        """

    @abstractmethod
    def shares(self, num_workers: int, state: BalanceState) -> Floats:
        """(n,) float64: each worker's share of the next round's samples; they sum to 1, and none is 0.

        Raises:
            PreconditionError: no workers.
        """

    def observe(self, state: BalanceState, timings: Mapping[int, Timing]) -> BalanceState:
        """Take in the timings of a round, by worker id; see `BalanceState.observe`."""
        return state.observe(timings)


@dataclass(frozen=True)
class RoundRobin(Balancer):
    """Everybody in turn, from where the last call stopped; equal shares.

    Example:
        >>> assignment, state = RoundRobin().assign([1, 1], [0, 0, 0], BalanceState())
        >>> assignment, RoundRobin().assign([1, 1], [0, 0, 0], state)[0]
        ([0, 1], [2, 0])
    """

    name: ClassVar[str] = "round_robin"

    def assign(self, costs: Numbers, loads: Numbers, state: BalanceState) -> tuple[list[int], BalanceState]:
        """Item i goes to worker (next + i) mod n, whatever it costs."""
        work, queued = _check(costs, loads)
        turn, n = state.next_worker % len(queued), len(queued)
        assignment = [(turn + item) % n for item in range(len(work))]
        return assignment, replace(state, next_worker=(turn + len(work)) % n)

    def shares(self, num_workers: int, state: BalanceState) -> Floats:  # noqa: ARG002 - the protocol's
        """1 / n each."""
        return np.full(_check_workers(num_workers), 1 / num_workers)


@dataclass(frozen=True)
class LeastLoaded(Balancer):
    """The largest item first, onto the worker that would finish first; all count as equally fast.

    From empty queues the last worker ends within 4/3 - 1/(3n) of the best possible time. Shares are in
    proportion to what others leave free of each worker's node, by the last load observed.

    Args:
        floor: every worker gets at least this fraction of an equal share, in (0, 1).

    Raises:
        ConfigError: a floor out of range.

    Example:
        >>> LeastLoaded().assign([2, 3, 4], [0, 0], BalanceState())[0]  # 4 | 3 + 2
        [1, 1, 0]

    Source: Graham 1969 (longest processing time first).
    """

    floor: float = 0.2
    name: ClassVar[str] = "least_loaded"

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def assign(self, costs: Numbers, loads: Numbers, state: BalanceState) -> tuple[list[int], BalanceState]:
        """Longest processing time first, at the median of the predicted paces for everybody."""
        work, queued = _check(costs, loads)
        pace = np.median(state.seconds_per_sample(len(queued)))
        return _earliest_finish(work, queued, np.full(len(queued), pace)), state

    def shares(self, num_workers: int, state: BalanceState) -> Floats:
        """In proportion to 1 - load; equal while no load is known."""
        return shares_with_floor(state.free(_check_workers(num_workers)), self.floor)


@dataclass(frozen=True)
class Adaptive(Balancer):
    """By predicted seconds per sample (`BalanceState.seconds_per_sample`), so that all finish together.

    share_k ∝ 1 / pace_k, but at least ``floor / n``: a worker without samples gives no timings, and could
    never show that it has become fast again. A cost that a round has whatever its size does no harm: it makes
    small shards look slow, and what settles is that all finish together.

    Args:
        floor: every worker gets at least this fraction of an equal share, in (0, 1).

    Raises:
        ConfigError: a floor out of range.

    Example:
        >>> balancer = Adaptive()
        >>> state = balancer.observe(BalanceState(), {0: Timing(100, 1.0), 1: Timing(100, 3.0)})
        >>> balancer.shares(2, state)
        array([0.75, 0.25])
        >>> balancer.assign([30, 30, 30, 30], [0.0, 0.0], state)[0]  # three times 0.3 s, once 0.9 s
        [0, 0, 0, 1]

    Source: Graham 1969 (longest processing time first); Gonzalez, Ibarra, Sahni 1977 (at unequal speeds).
    """

    floor: float = 0.2
    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def assign(self, costs: Numbers, loads: Numbers, state: BalanceState) -> tuple[list[int], BalanceState]:
        """Longest processing time first, each worker at its own predicted pace."""
        work, queued = _check(costs, loads)
        return _earliest_finish(work, queued, state.seconds_per_sample(len(queued))), state

    def shares(self, num_workers: int, state: BalanceState) -> Floats:
        """In proportion to predicted speed; equal before the first timing."""
        paces = state.seconds_per_sample(_check_workers(num_workers))
        return shares_with_floor(paces.min() / paces, self.floor)


BALANCERS = ("round_robin", "least_loaded", "adaptive")


def make_balancer(name: str) -> Balancer:
    """A balancer by name.

    Raises:
        ConfigError: an unknown name.

    Example:
        >>> make_balancer("adaptive")
        Adaptive(floor=0.2)
    """
    match name:
        case "round_robin":
            return RoundRobin()
        case "least_loaded":
            return LeastLoaded()
        case "adaptive":
            return Adaptive()
    raise ConfigError(f"unknown balancer '{name}'; {did_you_mean(name, BALANCERS)}")


def _earliest_finish(work: Floats, queued: Floats, paces: Floats) -> list[int]:
    """The largest item first, each to the worker that would be done with it first."""
    assignment, ends = [0] * len(work), queued.copy()
    for item in np.argsort(-work, kind="stable"):
        done = ends + work[item] * paces
        # a hair of slack, so that 0.3 + 0.3 + 0.3 ties with 0.9
        worker = int(np.flatnonzero(done <= done.min() * (1 + 1e-12))[0])
        assignment[item], ends[worker] = worker, done[worker]
    return assignment


def _check(costs: Numbers, loads: Numbers) -> tuple[Floats, Floats]:
    work, queued = np.asarray(costs, dtype=np.float64), np.asarray(loads, dtype=np.float64)
    _check_workers(len(queued))
    for what, values in (("costs", work), ("loads", queued)):
        bad = values[~(np.isfinite(values) & (values >= 0))]
        if len(bad):
            raise PreconditionError(f"{what} must be finite and at least 0, got {bad[0]}")
    return work, queued


def _check_workers(num_workers: int) -> int:
    if num_workers < 1:
        raise PreconditionError(f"there must be at least 1 worker to share the work, got {num_workers}")
    return num_workers


def _check_floor(floor: float) -> None:
    if not 0 < floor < 1:
        raise ConfigError(
            f"floor is a fraction of the equal share between 0 and 1 (both excluded), got {floor}"
        )
