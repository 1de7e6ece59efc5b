"""Rules that give every row one weight, decided on distances between rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hqde.aggregation.rule import Basis, Decision, FaultBound
from hqde.aggregation.summation import combined_rows
from hqde.errors import PreconditionError


class WeighingRule(FaultBound):
    """A rule whose decision is weights, and whose value is a weighted sum that skips rows of weight 0."""

    basis: ClassVar[Basis] = "gram"

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """The weighted sum of the rows that count."""
        assert decision.weights is not None
        return combined_rows(rows, decision.weights)


def needed(gram: Tensor | None, rule: str) -> Tensor:
    """The Gram matrix, where a rule cannot do without.

    Raises:
        PreconditionError: there are none.
    """
    if gram is None:
        raise PreconditionError(
            f"{rule} decides on distances between rows: give it gram_matrix(gram_parts(rows)), not None. "
            "A plan that adds up sums in a tree cannot run it; take the sharded or the flat plan."
        )
    return gram


def selection(chosen: list[int], num_rows: int, reason: str) -> Decision:
    """The mean of some rows, in heads; the others are left out for a reason.

    >>> selection([0, 2], 3, "too far").rejected
    {1: 'too far'}
    """
    weights = torch.zeros(num_rows, dtype=torch.float64)
    weights[chosen] = 1.0 / len(chosen)
    left = sorted(set(range(num_rows)) - set(chosen))
    return Decision(weights=weights, rejected=dict.fromkeys(left, reason))
