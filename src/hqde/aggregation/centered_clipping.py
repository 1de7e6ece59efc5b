"""Centered clipping: a mean in which no row pulls farther than a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.aggregation.geometric_median import check_majority
from hqde.aggregation.geometry import share_median, squared_distances_to
from hqde.aggregation.rule import Decision
from hqde.aggregation.weighing import WeighingRule, needed
from hqde.errors import ConfigError


@dataclass(frozen=True)
class CenteredClipping(WeighingRule):
    """v ← v + Σᵢ shareᵢ (rowᵢ - v) min(1, τ / ‖rowᵢ - v‖), from v = 0, a fixed number of times.

    Args:
        num_byzantine: f; not needed, but checked.
        radius: τ, in the unit of a delta's norm; ``None`` takes, at every step, the median of the distances
            ‖rowᵢ - v‖ (by shares), so that scaling the rows scales the result.
        num_iterations: steps.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [900.0]])
        >>> CenteredClipping(radius=3.0, num_iterations=1)(rows, torch.full((3,), 1 / 3)).value
        tensor([2.])

    Source: Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization", Algorithm
    2; there v starts from the last round's aggregate, here from a delta of 0.
    """

    name: ClassVar[str] = "centered_clipping"
    counts: ClassVar[Literal["weight", "heads", "nothing"]] = "weight"
    moves_along: ClassVar[bool] = False
    num_byzantine: int = 0
    radius: float | None = None
    num_iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise ConfigError(f"the radius of 'centered_clipping' must be above 0, got {self.radius}")
        if self.num_iterations < 1:
            raise ConfigError(f"'centered_clipping' needs num_iterations >= 1, got {self.num_iterations}")

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Weights of the rows in the last v; 0 takes the rest."""
        self.check_bound(len(shares))
        shares = shares.double()
        check_majority(self.name, shares, self.num_byzantine)
        gram = needed(gram, self.name)
        point = torch.zeros(len(gram), dtype=torch.float64)
        point[-1] = 1.0
        for _ in range(self.num_iterations):
            away = squared_distances_to(point, gram)[:-1].sqrt()
            radius = self.radius if self.radius is not None else share_median(away, shares)
            pulls = shares * torch.where(away > radius, radius / away, 1.0)
            point = (1.0 - pulls.sum()) * point
            point[:-1] += pulls
        return Decision(weights=point[:-1], iterations=self.num_iterations)
