"""Pre-aggregators that shorten long rows: clipping to a norm, and to one that the rows themselves give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.aggregation.geometry import squared_distances
from hqde.aggregation.mixing import FaultMixing, Mixed, Mixing, check_majority_of_rows
from hqde.aggregation.weighing import needed
from hqde.errors import ConfigError


@dataclass(frozen=True)
class Clipping(Mixing):
    """Rows longer than ``max_norm`` are shortened to it: xᵢ · min(1, c / ‖xᵢ‖).

    Args:
        max_norm: c, in the unit of a delta's Euclidean norm.

    Example:
        >>> from hqde.aggregation import Mean
        >>> rows = torch.tensor([[3.0, 4.0], [0.5, 0.0]])
        >>> (Clipping(1.0) >> Mean())(rows, torch.tensor([0.5, 0.5])).value
        tensor([0.5500, 0.4000])
    """

    name: ClassVar[str] = "clipping"
    moves_along: ClassVar[bool] = False
    max_norm: float

    def __post_init__(self) -> None:
        if not 0 < self.max_norm < math.inf:
            raise ConfigError(f"max_norm of 'clipping' must be above 0 and finite, got {self.max_norm}")

    def mix(self, gram: Tensor | None, shares: Tensor) -> Mixed:
        """Diagonal, the origin takes what is cut off."""
        norms = _norms(needed(gram, self.name))
        return Mixed(_shortened(norms, self.max_norm), shares.double())


@dataclass(frozen=True)
class AdaptiveRobustClipping(FaultMixing):
    """ARC: the ⌊2 f / n · (n - f)⌋ longest rows are shortened to the norm of the next.

    Example:
        >>> from hqde.aggregation import Mean
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [900.0]])
        >>> (AdaptiveRobustClipping(1) >> Mean())(rows, torch.full((4,), 1 / 4)).value
        tensor([2.2500])

    Source: Allouah et al. 2025, "Adaptive gradient clipping for robust federated learning", Algorithm 2.
    """

    name: ClassVar[str] = "arc"
    moves_along: ClassVar[bool] = False
    num_byzantine: int

    def mix(self, gram: Tensor | None, shares: Tensor) -> Mixed:
        """Diagonal, the origin takes what is cut off."""
        n, f = len(shares), self.num_byzantine
        check_majority_of_rows(self.name, n, f)
        norms = _norms(needed(gram, self.name))
        num_clipped = 2 * f * (n - f) // n
        longest = norms.sort(descending=True).values
        return Mixed(_shortened(norms, float(longest[num_clipped])), shares.double())


def _norms(gram: Tensor) -> Tensor:
    """``(n,)``: distances from the origin, which is the last point."""
    return squared_distances(gram)[-1, :-1].sqrt()


def _shortened(norms: Tensor, limit: float) -> Tensor:
    factors = torch.where(norms > limit, limit / norms, 1.0)
    return torch.cat([torch.diag(factors), (1.0 - factors).unsqueeze(1)], dim=1)
