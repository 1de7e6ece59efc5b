"""What follows when a worker is late or fails: patience, second attempts, exclusion. Decided here alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from hqde.backends import Failure
from hqde.errors import ConfigError
from hqde.rounds.events import Event
from hqde.training import Order

# A spread below this part of the median is taken for luck: few arrivals of equal workers show hardly any.
LEAST_SPREAD = 0.25
GRACE_S = 1.0  # rounds of milliseconds are late by scheduling alone
# The whole machine may be slower than a round ago: before its peers are in, nobody is called late by less.
UNSEEN_FACTOR = 10.0


@dataclass(frozen=True)
class FaultPolicy:
    """``[faults]``: what a run puts up with.

    Args:
        max_restarts: how often a worker is put back and given the same round again before it is excluded.
        patience: k of the deadline, median + k · MAD of the round's arrivals; 0 waits for ever.
        min_workers: usable updates that a group needs; with fewer it skips the round (a group that is smaller
            needs all of its workers).

    Raises:
        ConfigError: a value is out of range.
    """

    max_restarts: int = 3
    patience: float = 6.0
    min_workers: int = 1

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ConfigError(f"faults.max_restarts must not be negative, got {self.max_restarts}")
        if not 0 <= self.patience < math.inf:
            raise ConfigError(f"faults.patience must not be negative and be finite, got {self.patience}")
        if self.min_workers < 1:
            raise ConfigError(f"faults.min_workers must be at least 1, got {self.min_workers}")


class RoundSupervisor:
    """Keeps the times of arrivals and counts attempts. Implements ``backends.Supervisor``.

    Args:
        policy: what is put up with.
        tell: is told of every restart, and of what else a backend did about a fault.
    """

    def __init__(self, policy: FaultPolicy, tell: Callable[[Event], None]) -> None:
        self._policy = policy
        self._tell = tell
        self._expected: dict[int, int] = {}
        self._arrived: dict[int, list[float]] = defaultdict(list)
        self._before: dict[int, list[float]] = {}
        self._own: dict[int, float] = {}
        self.restarts = 0

    def begin(self, orders: Sequence[Order]) -> None:
        """A new round: these orders are going out."""
        self._before |= {kind: rates for kind, rates in self._arrived.items() if rates}
        self._arrived = defaultdict(list)
        self._expected = defaultdict(int)
        for order in orders:
            self._expected[_kind(order)] += 1
        self.restarts = 0

    def patience_s(self, order: Order) -> float | None:
        """median + k · MAD of seconds per unit of work, times the order's work, doubled with every attempt.

        Of this round's arrivals once half of the like workers are in; until then ten times what the round
        before would give. A worker that was slow before and made it is given twice its own time.
        """
        kind = _kind(order)
        rates, factor = self._arrived[kind], 1.0
        if 2 * len(rates) < self._expected[kind]:
            rates, factor = self._before.get(kind, []), UNSEEN_FACTOR
        if not self._policy.patience or not rates:
            return None
        middle = median(rates)
        spread = max(median(abs(rate - middle) for rate in rates), LEAST_SPREAD * middle)
        rate = max(middle + self._policy.patience * spread, 2 * self._own.get(order.worker_id, 0.0))
        return factor * (GRACE_S + rate * _work(order)) * 2.0**order.attempt

    def on_arrival(self, order: Order, seconds: float) -> None:
        """Note how long an order took."""
        self._arrived[_kind(order)].append(seconds / _work(order))
        self._own[order.worker_id] = seconds / _work(order)

    def on_repair(self, round_index: int, reason: str) -> None:
        """Tell of copies that were made anew."""
        self._tell(Event("repaired", round_index, None, reason))

    def on_back_off(self, round_index: int, reason: str) -> None:
        """Tell of fewer workers at a time."""
        self._tell(Event("backed_off", round_index, None, reason))

    def retries(self, failure: Failure) -> bool:
        """Whether there is another attempt, and tell of it."""
        if failure.attempt >= self._policy.max_restarts:
            return False
        self.restarts += 1
        reason = f"{failure.reason}; attempt {failure.attempt + 2} begins where the round began"
        self._tell(Event("restarted", failure.round_index, failure.worker_id, reason))
        return True

    def gives_up_on(self, failure: Failure) -> bool:
        """Whether a worker whose last attempt failed is left out from now on."""
        return failure.attempt >= self._policy.max_restarts > 0


def _kind(order: Order) -> int:
    """Workers of one architecture are compared with each other: the size of the model stands for it."""
    return len(order.start.vector)


def _work(order: Order) -> int:
    """How much an order asks for: examples, or batches where the round is a part of an epoch."""
    return max(1, len(order.shard) if order.num_batches is None else order.num_batches)
