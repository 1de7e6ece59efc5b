"""Which step and dead zone reach a rate with the least error: rate-distortion on a sorted sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

LEVELS = 127  # magnitudes told apart; the others count as escapes
ESCAPE_BITS = 20.0
# Where a magnitude rounds up: 0.5 is to the nearest, more sends doubtful values to the cheaper level below.
ROUND_UP_AT = (0.5, 0.54, 0.58, 0.62, 0.66)


@dataclass(frozen=True)
class Sample:
    """Magnitudes of a vector, sorted, from which rate and error of any step can be read off.

    Args:
        magnitudes: ``(n,)`` float64, >= 0, sorted, the largest of the whole vector being 1.

    Example:
        >>> sample = Sample(np.sort(np.abs(np.random.default_rng(0).standard_normal(10_000))) / 5)
        >>> step, up_at = sample.best_step(2.0)
        >>> sample.rate(step, up_at)
        2.0...
        >>> 10 * math.log10(0.04 / sample.error(step, up_at))  # dB; the bound is 12.04
        10.5...
    """

    magnitudes: NDArray[np.float64]

    @cached_property
    def _sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums of the first i magnitudes, and of their squares."""
        zero = np.zeros(1)
        return (
            np.concatenate([zero, self.magnitudes.cumsum()]),
            np.concatenate([zero, np.square(self.magnitudes).cumsum()]),
        )

    def _ends(self, step: float, up_at: float) -> NDArray[np.intp]:
        """Where in the sorted sample each level ends."""
        inner = np.searchsorted(self.magnitudes, (np.arange(LEVELS + 1) + up_at) * step)
        return np.concatenate([[0], inner, [len(self.magnitudes)]])

    def rate(self, step: float, up_at: float) -> float:
        """Entropy in bits per value, signs and escapes included."""
        counts = np.diff(self._ends(step, up_at)).astype(np.float64)
        some = counts[counts > 0]
        total = len(self.magnitudes)
        entropy = -float((some * np.log2(some / total)).sum())
        return (entropy + float(counts[1:].sum()) + ESCAPE_BITS * float(counts[-1])) / total

    def error(self, step: float, up_at: float) -> float:
        """Mean squared error when every level stands for its centroid."""
        ends = self._ends(step, up_at)
        first, second = (np.diff(sums[ends]) for sums in self._sums)
        counts = np.maximum(np.diff(ends), 1)
        spread = second[1:-1] - first[1:-1] ** 2 / counts[1:-1]
        return float(second[0] + spread.sum() + counts[-1] * step**2 / 12) / len(self.magnitudes)

    def step_for(self, rate: float, up_at: float) -> float:
        """The smallest step with at most this rate."""
        low, high = -24.0, 1.0  # log2: finer than any level is needed, coarser than the largest value
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if self.rate(2.0**middle, up_at) <= rate else (middle, high)
        return math.pow(2.0, high)

    def best_step(self, rate: float) -> tuple[float, float]:
        """Step and where to round up, with this rate and the least error."""
        pairs = [(self.step_for(rate, up_at), up_at) for up_at in ROUND_UP_AT]
        return min(pairs, key=lambda pair: self.error(*pair))
