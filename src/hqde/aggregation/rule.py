"""Aggregation rules: rows and shares to one vector, in two steps that may run on different machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.aggregation.gram import gram_matrix, gram_parts
from hqde.aggregation.summation import weighted_sum
from hqde.errors import PreconditionError

Basis = Literal["shares", "gram", "columns"]


@dataclass(frozen=True)
class Decision:
    """What a rule decides once, about the rows as wholes.

    Attributes:
        weights: ``(n,)`` float64 weight given to each row, summing to 1; ``None`` where a rule has none.
        rejected: positions of rows the rule left out, with the reason.
        iterations: steps of an iterative rule; 0 for closed forms.
        converged: an iterative rule reached its tolerance.
    """

    weights: Tensor | None = None
    rejected: dict[int, str] = field(default_factory=dict)
    iterations: int = 0
    converged: bool = True


@dataclass(frozen=True)
class Aggregate:
    """What a rule returns.

    Attributes:
        value: ``(d,)`` the aggregated delta.
        decision: how it came about.
    """

    value: Tensor
    decision: Decision


class Rule(ABC):
    """``rows (n, d)`` deltas and ``shares (n,)`` that sum to 1, to one ``(d,)`` vector. Never mutates.

    A rule works in two steps, so that an aggregation can be spread over machines (see ``topology.plans``):
    ``decide`` looks at the rows as wholes, once; ``combine`` turns any slice of columns into its part of the
    value. ``basis`` says what the decision needs:

    - ``"shares"``: nothing but the shares, and ``combine`` is a weighted sum, which a tree may add up;
    - ``"gram"``: the centred Gram matrix, summed over all columns;
    - ``"columns"``: nothing; every coordinate is combined by itself.
    """

    basis: ClassVar[Basis]
    name: ClassVar[str]

    @abstractmethod
    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Decide from the Gram matrix ``(n, n)`` float64 (``None`` unless the basis) and the shares."""

    @abstractmethod
    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """Columns ``(n, c)`` to ``(c,)``, the same bits for any slicing of the columns."""

    def __call__(self, rows: Sequence[Tensor] | Tensor, shares: Tensor) -> Aggregate:
        """Both steps, here and now, on rows in the order given; the engine orders them by worker id.

        Raises:
            PreconditionError: rows and shares do not fit each other, or the rule's own condition is not met.
        """
        check_rows(rows, shares)
        gram = gram_matrix(gram_parts(rows)) if self.basis == "gram" else None
        decision = self.decide(gram, shares)
        return Aggregate(self.combine(rows, decision), decision)


@dataclass(frozen=True)
class Mean(Rule):
    """The weighted mean: value = Σᵢ shareᵢ · rowᵢ. Tolerates no bad worker.

    Raises:
        PreconditionError: no rows, shares of another length, or shares that do not sum to 1.

    Example:
        >>> import torch
        >>> Mean()(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0.5, 0.5])).value
        tensor([2., 4.])

    Source: McMahan et al. 2017, Algorithm 1.
    """

    basis: ClassVar[Basis] = "shares"
    name: ClassVar[str] = "mean"

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:  # noqa: ARG002 - the rule's signature
        """Every row counts with its share."""
        return Decision(weights=shares)

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """The weighted sum."""
        assert decision.weights is not None
        return weighted_sum(rows, decision.weights.tolist())


def check_rows(rows: Sequence[Tensor] | Tensor, shares: Tensor) -> None:
    """Refuse what no rule can aggregate.

    Raises:
        PreconditionError: the sentence says what does not fit.
    """
    shapes = {tuple(row.shape) for row in rows} if len(rows) else set()
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        found = f"{tuple(rows.shape)}" if isinstance(rows, Tensor) else f"rows of shapes {sorted(shapes)}"
        raise PreconditionError(f"a rule needs rows of shape (n, d) with n >= 1, got {found}")
    dtypes = {row.dtype for row in rows}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise PreconditionError(f"a rule needs rows of one floating dtype, got {', '.join(map(str, dtypes))}")
    check_shares(len(rows), shares)


def check_shares(num_rows: int, shares: Tensor) -> None:
    """Refuse shares that are not ``num_rows`` non-negative numbers with the sum 1.

    Raises:
        PreconditionError: the sentence says what does not fit.
    """
    if shares.shape != (num_rows,):
        raise PreconditionError(f"{num_rows} rows need as many shares, got {tuple(shares.shape)}")
    total = float(shares.sum())
    if not abs(total - 1.0) <= 1e-6 or not bool((shares >= 0).all()):  # written so that NaN is refused
        raise PreconditionError(
            f"shares must be non-negative and sum to 1, got a least share of {float(shares.min()):.6g} "
            f"and a sum of {total:.6g}"
        )


def shares_of(samples: Sequence[int]) -> Tensor:
    """Sample counts as ``(n,)`` float64 shares that sum to 1.

    >>> shares_of([1, 3])
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    counts = torch.tensor(samples, dtype=torch.float64)
    return counts / counts.sum()
