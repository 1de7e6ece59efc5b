"""Aggregation rules: rows and shares to one vector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from hqde.errors import PreconditionError


@dataclass(frozen=True)
class Aggregate:
    """What a rule returns.

    Attributes:
        value: ``(d,)`` the aggregated delta.
        weights: ``(n,)`` weight given to each row, summing to 1; ``None`` where a rule has no row weights.
        rejected: positions of rows the rule left out, with the reason.
        iterations: steps of an iterative rule; 0 for closed forms.
        converged: an iterative rule reached its tolerance.
    """

    value: Tensor
    weights: Tensor | None = None
    rejected: dict[int, str] = field(default_factory=dict)
    iterations: int = 0
    converged: bool = True


class Rule(Protocol):
    """``rows (n, d)`` deltas and ``shares (n,)`` that sum to 1, to one ``(d,)`` vector. Never mutates."""

    def __call__(self, rows: Tensor, shares: Tensor) -> Aggregate:
        """Aggregate ``rows`` in the order given; the engine orders them by worker id."""
        ...


@dataclass(frozen=True)
class Mean:
    """The weighted mean: value = Σᵢ shareᵢ · rowᵢ. Tolerates no bad worker.

    Raises:
        PreconditionError: no rows, shares of another length, or shares that do not sum to 1.

    Example:
        >>> import torch
        >>> Mean()(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0.5, 0.5])).value
        tensor([2., 4.])

    Source: McMahan et al. 2017, Algorithm 1.
    """

    def __call__(self, rows: Tensor, shares: Tensor) -> Aggregate:
        check_rows(rows, shares)
        value = rows.new_zeros(rows.shape[1])
        # One row after the other: the same bits for any number of threads.
        for row, share in zip(rows, shares.tolist(), strict=True):
            value.add_(row, alpha=share)
        return Aggregate(value, weights=shares)


def check_rows(rows: Tensor, shares: Tensor) -> None:
    """Refuse what no rule can aggregate.

    Raises:
        PreconditionError: the sentence says what does not fit.
    """
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise PreconditionError(f"a rule needs rows of shape (n, d) with n >= 1, got {tuple(rows.shape)}")
    if not rows.is_floating_point():
        raise PreconditionError(f"a rule needs floating rows, got {rows.dtype}")
    if shares.shape != rows.shape[:1]:
        raise PreconditionError(f"{rows.shape[0]} rows need as many shares, got {tuple(shares.shape)}")
    total = float(shares.sum())
    if not abs(total - 1.0) <= 1e-6 or not bool((shares >= 0).all()):  # written so that NaN is refused
        raise PreconditionError(
            f"shares must be non-negative and sum to 1, got a least share of {float(shares.min()):.6g} "
            f"and a sum of {total:.6g}"
        )
