"""What is remembered of each worker: a Beta posterior of being admitted and agreed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.errors import ConfigError, PreconditionError

ReliabilityState = dict[str, Tensor]
"""``{"good": (n,), "bad": (n,)}`` float64: what speaks for and against each worker. It is complete: kept with
the run's checkpoint, a resumed run judges as if it had not stopped."""


@dataclass(frozen=True)
class Reliability:
    """Score of a worker = mean of Beta(a + good, b + bad), the chance that its next update is sound.

    Every round in which it was to hand in an update adds its agreement (1: admitted and with the majority, 0:
    refused) to ``good`` and the rest to ``bad``, after both have been multiplied by ``memory``: what was bad
    long ago is forgiven.

    Args:
        prior_good, prior_bad: a and b. A worker starts with a / (a + b).
        memory: in [0, 1); 0.9 remembers about ten rounds.
        threshold: a worker below it may be excluded.

    Example:
        >>> reliability = Reliability()
        >>> state = reliability.init(2)
        >>> for _ in range(10):
        ...     state = reliability.update({0: 1.0, 1: 0.0}, state)
        >>> reliability.scores(state)
        tensor([0.9546, 0.3632], dtype=torch.float64)

    Source: Jøsang, Ismail 2002, "The beta reputation system", equations 5 and 12 (forgetting).
    """

    prior_good: float = 4.0
    prior_bad: float = 0.5
    memory: float = 0.9
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not (self.prior_good > 0 and self.prior_bad > 0):
            raise ConfigError(f"priors must be above 0, got {self.prior_good} and {self.prior_bad}")
        if not 0 <= self.memory < 1 or not 0 <= self.threshold < 1:
            raise ConfigError(
                f"memory and threshold must lie in [0, 1), got {self.memory} and {self.threshold}"
            )

    def init(self, num_workers: int) -> ReliabilityState:
        """Nothing is known of anybody."""
        zeros = torch.zeros(num_workers, dtype=torch.float64)
        return {"good": zeros, "bad": zeros.clone()}

    def update(self, agreements: Mapping[int, float], state: ReliabilityState) -> ReliabilityState:
        """The state after a round.

        Args:
            agreements: worker id to its agreement in [0, 1]; 0 for a refused update. Workers that were not
                asked, or whose machine failed, are left out and stay as they are.
            state: never mutated.

        Raises:
            PreconditionError: an unknown worker, or a value outside [0, 1].
        """
        good, bad = state["good"].clone(), state["bad"].clone()
        for worker_id, value in agreements.items():
            if not 0 <= worker_id < len(good) or not 0.0 <= value <= 1.0:
                raise PreconditionError(
                    f"agreement lies in [0, 1] and belongs to one of {len(good)} workers, got {value} of "
                    f"worker {worker_id}"
                )
            good[worker_id] = self.memory * good[worker_id] + value
            bad[worker_id] = self.memory * bad[worker_id] + 1.0 - value
        return {"good": good, "bad": bad}

    def scores(self, state: ReliabilityState) -> Tensor:
        """``(n,)`` float64 in (0, 1)."""
        good, bad = self.prior_good + state["good"], self.prior_bad + state["bad"]
        return good / (good + bad)

    def shares(self, shares: Tensor, scores: Tensor) -> Tensor:
        """Shares ``(n,)`` weighed by their senders' scores; as they are if all are equal."""
        weighed = shares.double() * scores
        return weighed / weighed.sum()

    def excluded(self, agreements: Mapping[int, float], scores: Tensor) -> dict[int, str]:
        """Workers to leave out of this round, with the reason; nobody when all agree, and never a majority.

        Args:
            agreements: of this round, by position in ``scores``.
            scores: before this round.
        """
        if not agreements or min(agreements.values()) >= 1.0:
            return {}
        doubtful = sorted(
            (worker for worker in agreements if float(scores[worker]) < self.threshold),
            key=lambda worker: (float(scores[worker]), worker),
        )
        return {
            worker: f"its reliability is {float(scores[worker]):.2f}, below {self.threshold:g}"
            for worker in doubtful[: (len(agreements) - 1) // 2]
        }
