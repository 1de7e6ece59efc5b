"""The geometric median, found without looking at the rows again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hqde.aggregation.geometry import (
    ROUNDING,
    share_median,
    squared_distances,
    squared_distances_to,
    squared_length,
)
from hqde.aggregation.rule import Decision
from hqde.aggregation.weighing import WeighingRule, needed
from hqde.errors import ConfigError, PreconditionError

# Keeps a quotient finite where all distances are 0.
TINY = 1e-300


@dataclass(frozen=True)
class GeometricMedian(WeighingRule):
    """The point with the least sum of distances to the rows: argmin_z Σᵢ shareᵢ ‖rowᵢ - z‖.

    It stays bounded as long as the bad rows have less than half of the shares. A row that is the optimum
    itself is recognised beforehand; otherwise Weiszfeld's iteration runs on weights, from the best row, until
    the gradient is so short that no point can be better by more than ``tolerance`` of the objective. All of
    it is relative, so that scaling the rows scales the result.

    Args:
        num_byzantine: f; not needed, but checked: the f largest shares must sum to less than 1/2.
        tolerance: greatest distance from the optimum, as a fraction of the objective.
        max_iterations: of Weiszfeld; the decision says if they did not suffice.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0], [900.0, 0.0]])
        >>> found = GeometricMedian()(rows, torch.full((5,), 1 / 5))
        >>> found.value, found.decision.converged
        (tensor([0.5774, 0.0000]), True)

    Source: Weiszfeld 1937; Vardi, Zhang 2000, "The multivariate L1-median and associated data depth" (start
    at a row); Pillutla et al. 2022, "Robust aggregation for federated learning" (shares); κ from Allouah et
    al. 2023, "Fixing by mixing", Table 1.
    """

    name: ClassVar[str] = "geometric_median"
    counts: ClassVar[Literal["weight", "heads", "nothing"]] = "weight"
    num_byzantine: int = 0
    tolerance: float = 1e-7
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tolerance < 1 or self.max_iterations < 1:
            raise ConfigError(
                "geometric_median needs a tolerance in (0, 1) and max_iterations >= 1, "
                f"got {self.tolerance} and {self.max_iterations}"
            )

    def kappa(self, num_rows: int) -> float | None:
        """4 (1 + f / (n - 2f))², for equal shares."""
        return 4 * (1 + self.num_byzantine / (num_rows - 2 * self.num_byzantine)) ** 2

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Weights ∝ shareᵢ / distanceᵢ at the optimum."""
        self.check_bound(len(shares))
        shares = shares.double()
        check_majority(self.name, shares, self.num_byzantine)
        gram = needed(gram, self.name)[:-1, :-1]
        start, found = _best_row(gram, shares)
        return Decision(weights=start) if found else self._descend(start, gram, shares)

    def _descend(self, start: Tensor, gram: Tensor, shares: Tensor) -> Decision:
        # NumPy, because matrices are small and steps many: a call of PyTorch costs more than the arithmetic.
        products, own, bare = gram.numpy(), gram.diagonal().numpy(), shares.numpy()
        weights = start.numpy()
        least = ROUNDING * share_median(squared_distances_to(start, gram).sqrt(), shares) + TINY
        for iteration in range(1, self.max_iterations + 1):
            towards = products @ weights
            squares = own - 2.0 * towards + weights @ towards
            pulls = bare / np.maximum(np.sqrt(np.maximum(squares, 0.0)), least)
            following = pulls / pulls.sum()
            change = following - weights
            # The gradient is Σᵢ pullᵢ times the step; its length times twice the objective bounds the gap.
            gradient = pulls.sum() * np.sqrt(max(0.0, change @ products @ change))
            weights = following
            if 2.0 * gradient <= self.tolerance:
                return Decision(weights=torch.from_numpy(weights), iterations=iteration)
        return Decision(weights=torch.from_numpy(weights), iterations=self.max_iterations, converged=False)


def check_majority(name: str, shares: Tensor, num_byzantine: int) -> None:
    """Refuse shares with which f rows could have half of the weight.

    Raises:
        PreconditionError: with the numbers and what would do.
    """
    largest = shares.sort(descending=True).values.cumsum(0)
    if num_byzantine and float(largest[num_byzantine - 1]) >= 0.5:
        fewer = int((largest < 0.5).sum())
        raise PreconditionError(
            f"{name} bears bad shares of less than 1/2, but the {num_byzantine} largest of {len(shares)} sum "
            f"to {float(largest[num_byzantine - 1]):.3g}. Use num_byzantine={fewer}, or equal shards of data."
        )


def _best_row(gram: Tensor, shares: Tensor) -> tuple[Tensor, bool]:
    """Weights of the best row if it is the optimum, else of the point that one step leads to from it.

    Returns:
        the weights, and whether that row is the optimum: the others pull less than its own share holds.
    """
    distances = squared_distances(gram).sqrt()
    best = int((distances @ shares).argmin())
    away = distances[best]
    here = away == 0.0
    own = float(shares[here].sum())
    weights = torch.zeros_like(shares)
    weights[best] = 1.0
    pulls = torch.where(here, 0.0, shares / away.masked_fill(here, 1.0))
    towards = pulls - pulls.sum() * weights  # Σᵢ pullᵢ (rowᵢ - best), as weights that sum to 0
    slope = squared_length(towards, gram) ** 0.5
    if slope <= own:
        return weights, True
    step = 1.0 - own / slope
    return (1.0 - step) * weights + step * pulls / pulls.sum(), False
