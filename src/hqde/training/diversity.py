"""What makes workers differ on purpose."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hqde.errors import ConfigError


@dataclass(frozen=True)
class Diversity:
    """Per-worker differences. Seeds and data orders always differ; the rest is set here.

    Args:
        learning_rate_spread: worker rates are spread evenly over ``[1 - s, 1 + s]`` times the rate.
        dropout_spread: worker dropout rates are spread evenly over ``[p - s, p + s]``, cut to [0, 0.9].
        bootstrap: each worker draws its shard with replacement (bagging, Breiman 1996).
        shared_init: all groups start from the same weights instead of each from its own.
        entangled_noise: size, relative to the weights of each tensor, of perturbations of the workers' starts
            in each round that cancel over their group (``hqde.quantum.entangled_coefficients``); it falls in
            a straight line to nothing at the end of the run. 0 is none.

    Example:
        >>> [round(m, 2) for m in Diversity(learning_rate_spread=0.2).learning_rate_factors(3)]
        [0.8, 1.0, 1.2]
    """

    learning_rate_spread: float = 0.1
    dropout_spread: float = 0.05
    bootstrap: bool = False
    shared_init: bool = False
    entangled_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.learning_rate_spread < 1:
            raise ConfigError(f"learning_rate_spread must lie in [0, 1), got {self.learning_rate_spread}")
        if not 0 <= self.dropout_spread < 1:
            raise ConfigError(f"dropout_spread must lie in [0, 1), got {self.dropout_spread}")
        if not 0 <= self.entangled_noise < math.inf:
            raise ConfigError(
                f"entangled_noise must not be negative and be finite, got {self.entangled_noise}"
            )

    def learning_rate_factors(self, num_workers: int) -> tuple[float, ...]:
        """One factor per worker, in worker order; all 1 for a single worker."""
        return tuple(1.0 + self.learning_rate_spread * x for x in _even(num_workers))

    def dropout_rates(self, base: float, num_workers: int) -> tuple[float, ...]:
        """One dropout rate per worker, in worker order."""
        return tuple(min(0.9, max(0.0, base + self.dropout_spread * x)) for x in _even(num_workers))


def _even(count: int) -> tuple[float, ...]:
    """``count`` points spread evenly over [-1, 1]; 0 for a single one."""
    if count == 1:
        return (0.0,)
    return tuple(2.0 * i / (count - 1) - 1.0 for i in range(count))
