"""The learning rate as a pure function of how far the run has come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hqde.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay to zero, with one restart when groups branch.

    With progress p in [0, 1], warm-up fraction u, restart at r with level q:

        p < u:        p / u
        u ≤ p < r:    ½ (1 + cos(π (p - u) / (1 - u)))
        r ≤ p:        q · ½ (1 + cos(π (p - r) / (1 - r)))

    With M cycles each Mth of the run has a cosine of its own, from 1 to zero; the first begins after warm-up.

    Args:
        kind: ``"cosine"``, or ``"constant"`` (1 after warm-up, and no restart).
        warmup: u, fraction of the run.
        restart_at: r, fraction of the run; ``None`` for no restart.
        restart_level: q, fraction of the peak.
        cycles: M, of a cosine.

    Raises:
        ConfigError: a fraction is out of range, or cycles meet a restart or a longer warm-up.

    Example:
        >>> Schedule(warmup=0.1).factor(0.05)
        0.5
        >>> Schedule(warmup=0.0, restart_at=0.5, restart_level=0.6).factor(0.5)
        0.6
        >>> [round(Schedule(warmup=0.0, cycles=2).factor(p), 2) for p in (0.0, 0.25, 0.49, 0.5, 1.0)]
        [1.0, 0.5, 0.0, 1.0, 0.0]

    Source: Loshchilov & Hutter 2017 (SGDR); Zhang et al. 2020, "Cyclical stochastic gradient MCMC for
    Bayesian deep learning", equation 1.
    """

    kind: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    restart_at: float | None = None
    restart_level: float = 0.67
    cycles: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a fraction of the run in [0, 1), got {self.warmup}")
        if self.restart_at is not None and not 0 < self.restart_at < 1:
            raise ConfigError(
                f"restart_at is a fraction of the run between 0 and 1 (both excluded), got {self.restart_at}"
            )
        if self.cycles > 1 and self.restart_at is not None:
            raise ConfigError(
                f"{self.cycles} cycles and a restart where groups branch, at {self.restart_at:g} of the run, "
                f"get in each other's way; use cycles = 1, or no branch_at"
            )
        if self.cycles > 1 and self.warmup >= 1 / self.cycles:
            raise ConfigError(
                f"warmup={self.warmup} of the run does not end within the first of {self.cycles} cycles; "
                f"use less than {1 / self.cycles:.3g}"
            )

    def factor(self, progress: float) -> float:
        """Fraction of the peak rate at ``progress``, itself a fraction of the run."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "constant":
            return 1.0
        if self.restart_at is not None and progress >= self.restart_at:
            return self.restart_level * _cosine(progress, self.restart_at)
        cycle = min(int(progress * self.cycles), self.cycles - 1)
        if self.cycles > 1 and cycle:
            return _cosine(progress * self.cycles - cycle, 0.0)
        return _cosine(progress * self.cycles, self.warmup * self.cycles)


def _cosine(progress: float, start: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * (progress - start) / (1.0 - start)))
