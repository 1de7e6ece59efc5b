"""Weighted sums of rows whose bits do not depend on how the work was cut up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hqde.aggregation.gram import BLOCK
from hqde.aggregation.products import Rows
from hqde.aggregation.threads import slices, spread, spread_runs

# Columns per pass: all partial sums of a pass stay in a core's cache, so each row is read from memory once.
CHUNK = 1 << 15


def weighted_sum(rows: Sequence[Tensor] | Tensor, weights: Sequence[float]) -> Tensor:
    """Σᵢ weightᵢ · rowᵢ, added up along a fixed binary tree over the positions of the rows.

    The tree is that of ``add_pairwise``: a sum over any aligned block of 2ᵏ rows is one of its nodes. So
    partial sums made elsewhere, over blocks of 2ᵏ rows or over slices of columns, give the same bits.

    Args:
        rows: n vectors ``(d,)`` of one floating dtype; never mutated.
        weights: n numbers.

    Returns:
        ``(d,)``.

    Example:
        >>> weighted_sum(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), [0.5, 0.5])
        tensor([2., 4.])
    """
    total = torch.empty_like(rows[0], memory_format=torch.contiguous_format)

    def work(columns: slice) -> None:
        terms = (row[columns] * weight for row, weight in zip(rows, weights, strict=True))
        total[columns] = add_pairwise(terms)

    spread(work, slices(0, len(total), CHUNK))
    return total


def combined_rows(rows: Sequence[Tensor] | Tensor, weights: Tensor) -> Tensor:
    """Σᵢ weightᵢ · rowᵢ, in float32, or float64 if rows are; rows of weight 0 are not read.

    Faster than ``weighted_sum``. Partial sums over some of the rows would not give the same bits, slices of
    columns that begin at multiples of ``BLOCK`` do.

    Example:
        >>> combined_rows(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0.5, 0.5]))
        tensor([2., 4.])
        >>> combined_rows(torch.tensor([[1.0], [float("nan")]]), torch.tensor([2.0, 0.0]))
        tensor([2.])
    """
    first, counting = rows[0], weights.nonzero().flatten().tolist()
    if not counting:
        return torch.zeros_like(first, memory_format=torch.contiguous_format)
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    total = torch.empty_like(first, dtype=dtype, memory_format=torch.contiguous_format)
    reader = Rows(rows if len(counting) == len(rows) else [rows[i] for i in counting])
    factors = weights[counting].to(first.device, dtype)

    def work(columns: slice) -> None:
        reader.combine(columns, factors, total)

    spread_runs(work, 0, len(total), BLOCK, operations=float(len(total) * len(reader)))
    return total.to(first.dtype)


def add_pairwise(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors along a binary tree: neighbours first, then neighbouring pairs, and so on.

    Terms may be overwritten. Of n terms at most log₂ n + 1 are held at a time.

    Raises:
        ValueError: there is no term.

    Example:
        >>> big = torch.tensor([1e8])
        >>> add_pairwise([big.clone(), -big, torch.tensor([0.5]), torch.tensor([0.5])])
        tensor([1.])
    """
    pending: list[tuple[int, Tensor]] = []  # (height, sum), heights falling: the counter's binary digits
    for term in terms:
        height, total = 0, term
        while pending and pending[-1][0] == height:
            total = pending.pop()[1].add_(total)
            height += 1
        pending.append((height, total))
    if not pending:
        raise ValueError("there is nothing to add")
    total = pending.pop()[1]
    while pending:
        total = pending.pop()[1].add_(total)
    return total
