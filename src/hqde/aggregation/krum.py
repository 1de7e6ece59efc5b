"""Rules that score a row by its nearest neighbours: Krum, Multi-Krum, Bulyan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.aggregation.coordinate import MeanAroundMedian
from hqde.aggregation.geometry import squared_distances
from hqde.aggregation.rule import Decision
from hqde.aggregation.weighing import WeighingRule, needed, selection
from hqde.errors import ConfigError, PreconditionError

# Scores that rounding may have told apart.
TIE = 1e-9


def krum_scores(distances: Tensor, num_byzantine: int) -> Tensor:
    """``(n,)``: for each row the sum of squared distances to its n - f - 2 nearest neighbours.

    Args:
        distances: squared, ``(n, n)``.
        num_byzantine: f; at least one neighbour is counted.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 3.0, 100.0])
        >>> krum_scores((line.unsqueeze(0) - line.unsqueeze(1)) ** 2, 1)
        tensor([1.0000e+00, 1.0000e+00, 4.0000e+00, 9.4090e+03])
    """
    n = len(distances)
    if n == 1:
        return torch.zeros_like(distances[0])
    others = distances.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, : min(n - 1, max(1, n - num_byzantine - 2))].sum(dim=1)


def _nearest(distances: Tensor, num_byzantine: int) -> int:
    """The row with the lowest score; of equal ones, the one nearer to all, and then the first.

    Two rows have equal scores whenever one neighbour is counted and they are each other's, so that without
    the second condition their order would decide.
    """
    scores = krum_scores(distances, num_byzantine)
    tied = scores <= float(scores.min()) * (1.0 + TIE)
    return int(distances.sum(dim=1).masked_fill(~tied, torch.inf).argmin())


@dataclass(frozen=True)
class Krum(WeighingRule):
    """The row whose n - f - 2 nearest neighbours are nearest.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [1.5], [2.0], [900.0]])
        >>> Krum(1)(rows, torch.full((5,), 1 / 5)).value
        tensor([1.5000])

    Source: Blanchard et al. 2017, "Machine learning with adversaries"; κ from Allouah et al. 2023, "Fixing by
    mixing", Table 1.
    """

    name: ClassVar[str] = "krum"
    bound: ClassVar[str] = "n >= 2f + 3"
    num_byzantine: int

    def least_rows(self) -> int:
        """2f + 3; one row is its own choice where f is 0."""
        return 2 * self.num_byzantine + 3 if self.num_byzantine else 1

    def kappa(self, num_rows: int) -> float | None:
        """6 (1 + f / (n - 2f))."""
        return 6 * (1 + self.num_byzantine / (num_rows - 2 * self.num_byzantine))

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """All weight on one row."""
        self.check_bound(len(shares))
        best = _nearest(squared_distances(needed(gram, self.name)[:-1, :-1]), self.num_byzantine)
        return selection([best], len(shares), f"krum chose row {best}, which lies nearer to its neighbours")


@dataclass(frozen=True)
class MultiKrum(WeighingRule):
    """The mean of the m rows with the lowest Krum scores.

    Args:
        num_byzantine: f.
        num_selected: m; n - f unless given.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [1.5], [2.0], [900.0]])
        >>> MultiKrum(1)(rows, torch.full((5,), 1 / 5)).value
        tensor([1.1250])

    Source: Blanchard et al. 2017, "Machine learning with adversaries", section 4 and appendix; its κ is
    bounded in Bareilles et al. 2026, "Byzantine machine learning: MultiKrum and an optimal notion of
    robustness".
    """

    name: ClassVar[str] = "multi_krum"
    bound: ClassVar[str] = "n >= 2f + 3"
    num_byzantine: int
    num_selected: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_selected is not None and self.num_selected < 1:
            raise ConfigError(f"num_selected of 'multi_krum' must be at least 1, got {self.num_selected}")

    def least_rows(self) -> int:
        """2f + 3, and as many as are to be selected beside f bad ones."""
        least = 2 * self.num_byzantine + 3 if self.num_byzantine else 1
        return max(least, self.num_byzantine + (self.num_selected or 1))

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Equal weights on m rows."""
        self.check_bound(len(shares))
        scores = krum_scores(squared_distances(needed(gram, self.name)[:-1, :-1]), self.num_byzantine)
        count = self.num_selected or len(scores) - self.num_byzantine
        chosen = scores.argsort(stable=True)[:count].tolist()
        return selection(sorted(chosen), len(scores), f"its multi_krum score is not among the {count} lowest")


@dataclass(frozen=True)
class Bulyan(WeighingRule):
    """Krum again and again until n - 2f rows are chosen, and of them the mean around the median.

    The mean is that of the n - 4f values of every coordinate that lie nearest to its median.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [1.5], [2.0], [3.0], [4.0], [900.0]])
        >>> Bulyan(1)(rows, torch.full((7,), 1 / 7)).value
        tensor([1.5000])

    Source: El Mhamdi, Guerraoui, Rouault 2018, "The hidden vulnerability of distributed learning in
    Byzantium", section 4.
    """

    name: ClassVar[str] = "bulyan"
    bound: ClassVar[str] = "n >= 4f + 3"
    num_byzantine: int

    def least_rows(self) -> int:
        """4f + 3; one row is its own choice where f is 0."""
        return 4 * self.num_byzantine + 3 if self.num_byzantine else 1

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Picks n - 2f rows for the columns to choose from."""
        n, f = len(shares), self.num_byzantine
        self.check_bound(n)
        left = list(range(n))
        distances = squared_distances(needed(gram, self.name)[:-1, :-1])
        while len(left) > 2 * f:
            remaining = distances[left][:, left]
            left.pop(_nearest(remaining, f))
        chosen = [i for i in range(n) if i not in left]
        mixing = torch.zeros(len(chosen), n, dtype=torch.float64)
        mixing[range(len(chosen)), chosen] = 1.0
        reason = f"bulyan chose {len(chosen)} rows that lie nearer to their neighbours"
        return Decision(mixing=mixing, rejected=dict.fromkeys(left, reason))

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """Of every coordinate of the chosen rows, the mean of the n - 4f values around the median."""
        if decision.mixing is None:
            raise PreconditionError("bulyan combines what it decided on: the decision has no mixing.")
        return MeanAroundMedian(2 * self.num_byzantine).combine(rows, decision)
