"""Rules over rows that do not fit into memory: slices of columns, read as often as a rule must."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from hqde.aggregation.gram import BLOCK, gram_matrix, gram_parts, merge_parts
from hqde.aggregation.rule import Aggregate, Rule, check_rows
from hqde.errors import PreconditionError

T = TypeVar("T")
Slices = Iterable[Sequence[Tensor] | Tensor]


def aggregate_stream(rule: Rule, read: Callable[[], Slices], shares: Tensor) -> Aggregate:
    """What ``rule(rows, shares)`` gives, bit for bit, from rows in slices of columns.

    At no time more than one slice is held, beside the value. Rows must be finite: a slice alone cannot leave
    a row out of the others.

    Args:
        rule: any.
        read: called once, or twice for rules that decide on the Gram matrix; each time it yields the same
            slices ``(n, c)`` from the first column to the last, all but the last multiples of ``BLOCK`` wide.
        shares: ``(n,)``, summing to 1.

    Raises:
        PreconditionError: a slice has another width, there is none, or the rule's own condition is not met.
        NonFiniteError: a row holds NaN or infinity.

    Example:
        >>> from hqde.aggregation import CoordinateMedian
        >>> rows = torch.tensor([[1.0] * 40_000, [2.0] * 40_000, [9.0] * 40_000])
        >>> slices = lambda: rows.split(2 * BLOCK, dim=1)
        >>> aggregate_stream(CoordinateMedian(), slices, torch.full((3,), 1 / 3)).value.unique()
        tensor([2.])
    """
    gram = None
    if rule.basis == "gram":
        parts, begin = [], 0
        for piece in read():
            _check(piece, begin, shares)
            parts.append(gram_parts(piece, first_block=begin // BLOCK))
            begin += len(piece[0])
            parts = [merge_parts(parts)]
        gram = gram_matrix(_some(parts)[0])
    decision = rule.decide(gram, shares)
    values, begin = [], 0
    for piece in read():
        _check(piece, begin, shares)
        values.append(rule.combine(piece, decision))
        begin += len(piece[0])
    return Aggregate(torch.cat(_some(values)), decision)


def _check(piece: Sequence[Tensor] | Tensor, begin: int, shares: Tensor) -> None:
    check_rows(piece, shares)
    if begin % BLOCK:
        raise PreconditionError(
            f"only the last slice may end within a block of {BLOCK} columns, but one ended at column {begin}"
        )


def _some(found: list[T]) -> list[T]:
    if not found:
        raise PreconditionError("there is nothing to aggregate: no slice of columns was read")
    return found
