"""Rules that average the n - f rows which belong together: MDA, MoNNA, CAF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.aggregation.geometry import centred_gram, squared_distances
from hqde.aggregation.rule import Decision
from hqde.aggregation.weighing import WeighingRule, needed, selection
from hqde.errors import ConfigError, PreconditionError

# Branches of the search for a smallest diameter before it is given up: about ten seconds.
MAX_BRANCHES = 200_000


@dataclass(frozen=True)
class MinimumDiameterAveraging(WeighingRule):
    """MDA: the mean of the n - f rows whose largest distance from each other is smallest; of several such
    sets, the one that the search meets first.

    Rows that are farther apart than t cannot both be chosen; so a diameter of t can be had if f rows cover
    all such pairs. That is a search of at most 1.47ᶠ branches for each t, instead of all (n over f) subsets.

    Raises:
        PreconditionError: the search takes too long; with f ≤ 20 it never did.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.0], [900.0]])
        >>> MinimumDiameterAveraging(1)(rows, torch.full((4,), 1 / 4)).value
        tensor([1.])

    Source: El Mhamdi et al. 2021, "Collaborative learning in the jungle"; Rousseeuw 1985 (minimum volume).
    """

    name: ClassVar[str] = "mda"
    num_byzantine: int

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Equal weights on n - f rows."""
        n, f = len(shares), self.num_byzantine
        self.check_bound(n)
        distances = squared_distances(needed(gram, self.name)[:-1, :-1])
        if f == 0:
            return selection(list(range(n)), n, "")
        steps = distances.unique().tolist()
        low, high = 0, len(steps) - 1  # the last is always wide enough
        found: set[int] = set()
        while low < high:
            middle = (low + high) // 2
            cover = _cover(distances > steps[middle], f, [0])
            if cover is None:
                low = middle + 1
            else:
                high, found = middle, cover
        if high == len(steps) - 1:
            found = set()
        # Ties may leave more rows than n - f: then those that are farthest from the others go too.
        kept = [i for i in range(n) if i not in found]
        while len(kept) > n - f:
            kept.pop(int(distances[kept][:, kept].sum(dim=1).argmax()))
        reason = (
            f"without it and {f - 1} more, the other rows are within {steps[high] ** 0.5:.3g} of each other"
        )
        return selection(kept, n, reason)


def _cover(apart: Tensor, count: int, branches: list[int]) -> set[int] | None:
    """At most ``count`` rows that touch every pair of ``apart (n, n)``, or ``None`` if there are none."""
    branches[0] += 1
    if branches[0] > MAX_BRANCHES:
        raise PreconditionError(
            f"mda found no smallest diameter in {MAX_BRANCHES} branches. Use multi_krum, or nnm before mean."
        )
    degrees = apart.sum(dim=1)
    most = int(degrees.argmax())
    degree = int(degrees[most])
    if degree == 0:
        return set()
    if count == 0 or int(degrees.sum()) > 2 * count * degree:
        return None
    # Either the row with the most pairs goes, or all its partners do.
    without = apart.clone()
    without[most] = without[:, most] = False
    rest = _cover(without, count - 1, branches)
    if rest is not None:
        return rest | {most}
    partners = apart[most].nonzero().flatten().tolist()
    if degree > count or degree == 1:
        return None
    without = apart.clone()
    without[partners] = False
    without[:, partners] = False
    rest = _cover(without, count - degree, branches)
    return None if rest is None else rest | set(partners)


@dataclass(frozen=True)
class Monna(WeighingRule):
    """MoNNA: the mean of the n - f rows nearest to a trusted one, itself among them.

    Args:
        num_byzantine: f.
        pivot: position of the row that is trusted. If it is bad, so is the result.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.0], [900.0]])
        >>> Monna(1)(rows, torch.full((4,), 1 / 4)).value
        tensor([1.])

    Source: Farhadkhani et al. 2023, "Robust collaborative learning with linear gradient overhead".
    """

    name: ClassVar[str] = "monna"
    num_byzantine: int
    pivot: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivot < 0:
            raise ConfigError(f"the pivot of 'monna' is a position from 0 on, got {self.pivot}")

    def least_rows(self) -> int:
        """2f + 1, and the pivot must be there."""
        return max(2 * self.num_byzantine + 1, self.pivot + 1)

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Equal weights on the pivot and its neighbours."""
        n = len(shares)
        self.check_bound(n)
        away = squared_distances(needed(gram, self.name)[:-1, :-1])[self.pivot]
        away[self.pivot] = -1.0
        chosen = away.argsort(stable=True)[: n - self.num_byzantine].tolist()
        reason = f"it is not among the {len(chosen)} rows nearest to row {self.pivot}"
        return selection(sorted(chosen), n, reason)


@dataclass(frozen=True)
class Caf(WeighingRule):
    """CAF, covariance-bound agnostic filter: takes weight from rows along the widest direction.

    Weights start at 1. Each step lowers them in proportion to the squared distance from the mean along the
    leading eigenvector of the covariance, the farthest row's to 0, while more than n - 2f are left. The mean
    with the smallest leading eigenvalue on the way is the value.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.0], [900.0]])
        >>> Caf(1)(rows, torch.full((4,), 1 / 4)).value
        tensor([1.0007])

    Source: Allouah et al. 2025, "Towards trustworthy federated learning with untrusted participants",
    Algorithm 2.
    """

    name: ClassVar[str] = "caf"
    num_byzantine: int

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """The weights with the smallest leading eigenvalue of the covariance."""
        n, f = len(shares), self.num_byzantine
        self.check_bound(n)
        gram = needed(gram, self.name)[:-1, :-1]
        counting = torch.ones(n, dtype=torch.float64)
        best, smallest = counting / n, torch.inf
        steps = 0
        while float(counting.sum()) > n - 2 * f:
            steps += 1
            weights = counting / counting.sum()
            here = counting.nonzero().flatten()
            inner = centred_gram(weights[here], gram[here][:, here])
            scale = float(inner.diagonal().max())
            if scale <= 0.0:  # all that count are one point
                return Decision(weights=weights, rejected=_emptied(counting), iterations=steps)
            roots = weights[here].sqrt()
            values, vectors = torch.linalg.eigh(roots.unsqueeze(1) * (inner / scale) * roots)
            largest = float(values[-1]) * scale
            if largest < smallest:
                best, smallest = weights, largest
            along = (inner / scale @ (roots * vectors[:, -1])).square()
            counting = counting.clone()
            counting[here] = counting[here] * (1.0 - along / along.max())
        return Decision(weights=best, rejected=_emptied(best), iterations=steps)


def _emptied(weights: Tensor) -> dict[int, str]:
    left = (weights == 0).nonzero().flatten().tolist()
    return dict.fromkeys(left, "it lies farthest out along the direction in which rows differ most")
