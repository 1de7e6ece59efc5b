"""The geometric median, found without looking at the rows again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.aggregation.geometry import ROUNDING
from hqde.aggregation.rule import Decision
from hqde.aggregation.weighing import WeighingRule, needed
from hqde.errors import ConfigError, PreconditionError


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
        from hqde.aggregation import kernels  # numba takes half a second to import

        self.check_bound(len(shares))
        shares = shares.double()
        check_majority(self.name, shares, self.num_byzantine)
        gram = needed(gram, self.name)[:-1, :-1]
        weights = torch.empty_like(shares)
        products = gram.contiguous().numpy()
        limits = self.tolerance, self.max_iterations, ROUNDING
        iterations = kernels.geometric_median(products, shares.numpy(), *limits, weights.numpy())
        if iterations < 0:
            return Decision(weights=weights, iterations=self.max_iterations, converged=False)
        return Decision(weights=weights, iterations=iterations)


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
