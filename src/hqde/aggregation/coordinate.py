"""Rules that sort every coordinate: median, trimmed mean, mean around the median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.aggregation.columns import ColumnRule, run_network
from hqde.aggregation.network import network


@dataclass(frozen=True)
class CoordinateMedian(ColumnRule):
    """The median of every coordinate; of an even number of rows the mean of the two in the middle.

    Args:
        num_byzantine: f, how many rows may be wrong. The median does not need it; it is checked (2f < n).

    Example:
        >>> rows = torch.tensor([[1.0, 5.0], [2.0, 6.0], [900.0, -900.0]])
        >>> CoordinateMedian()(rows, torch.full((3,), 1 / 3)).value
        tensor([2., 5.])

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", Option I; κ from Allouah et al. 2023,
    "Fixing by mixing", Table 1.
    """

    name: ClassVar[str] = "coordinate_median"
    num_byzantine: int = 0

    def kappa(self, num_rows: int) -> float | None:
        """4 (1 + f / (n - 2f))²."""
        return 4 * (1 + self.num_byzantine / (num_rows - 2 * self.num_byzantine)) ** 2

    def pool(self, wires: list[Tensor], spare: Tensor) -> Tensor:
        """The middle of a chunk."""
        middle = range((len(wires) - 1) // 2, len(wires) // 2 + 1)
        return _mean_of(wires, spare, middle)


@dataclass(frozen=True)
class TrimmedMean(ColumnRule):
    """The mean of what is left of every coordinate without its f smallest and f largest values.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [4.0], [900.0]])
        >>> TrimmedMean(1)(rows, torch.full((4,), 1 / 4)).value
        tensor([3.])

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", Option II; κ from Allouah et al. 2023,
    "Fixing by mixing", Table 1.
    """

    name: ClassVar[str] = "trimmed_mean"
    num_byzantine: int

    def kappa(self, num_rows: int) -> float | None:
        """6 f / (n - 2f) · (1 + f / (n - 2f))."""
        ratio = self.num_byzantine / (num_rows - 2 * self.num_byzantine)
        return 6 * ratio * (1 + ratio)

    def pool(self, wires: list[Tensor], spare: Tensor) -> Tensor:
        """The mean of the middle of a chunk."""
        return _mean_of(wires, spare, range(self.num_byzantine, len(wires) - self.num_byzantine))


@dataclass(frozen=True)
class MeanAroundMedian(ColumnRule):
    """The mean of the n - f values of every coordinate that lie nearest to its median.

    Sorted, these are neighbours, so that the value at k < f is among them unless the one at k + n - f is
    nearer to the median; of two equally near ones the smaller counts.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [4.0], [900.0]])
        >>> MeanAroundMedian(1)(rows, torch.full((4,), 1 / 4)).value
        tensor([2.3333])

    Source: Xie, Koyejo, Gupta 2018, "Generalized Byzantine-tolerant SGD" (mean-around-median).
    """

    name: ClassVar[str] = "mean_around_median"
    num_byzantine: int

    def pool(self, wires: list[Tensor], spare: Tensor) -> Tensor:
        """The mean of a chunk's values around the middle."""
        n, f = len(wires), self.num_byzantine
        count, low, high = n - f, (n - 1) // 2, n // 2
        read = {*range(f), *range(count, n), low, high}
        free = run_network(network(n, range(f, count), tuple(sorted(read))), wires, spare)
        median = torch.add(wires[low], wires[high], out=free).mul_(0.5)
        # The window from 0 on; from each k that it moves on past, k + count takes k's place.
        window = wires[:count]
        for k in range(f):
            smaller, larger = wires[k], wires[k + count]
            window[k % count] = torch.where(larger - median < median - smaller, larger, window[k % count])
        total = window[0].clone()
        for values in window[1:]:
            total += values
        return total.mul_(1.0 / count)


def _mean_of(wires: list[Tensor], spare: Tensor, middle: range) -> Tensor:
    """The mean of some sorted positions of a chunk."""
    run_network(network(len(wires), middle), wires, spare)
    total = wires[middle[0]]
    for position in middle[1:]:
        total.add_(wires[position])
    return total if len(middle) == 1 else total.mul_(1.0 / len(middle))
