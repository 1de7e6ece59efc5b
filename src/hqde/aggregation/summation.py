"""Weighted sums of rows whose bits do not depend on how the work was cut up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import local

import torch
from torch import Tensor

from hqde.aggregation.gram import BLOCK

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

    over_columns(len(total), CHUNK, work)
    return total


def combined_rows(rows: Sequence[Tensor] | Tensor, weights: Tensor) -> Tensor:
    """Σᵢ weightᵢ · rowᵢ as a matrix times a vector, block by block; sums are float32, or float64 if rows are.

    Twice to five times as fast as ``weighted_sum`` where the rows stand in one tensor. Partial sums over some
    of the rows would not give the same bits, slices of columns that begin at multiples of ``BLOCK`` do. What
    a row of weight 0 holds makes no difference, even where it is NaN.

    Example:
        >>> combined_rows(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0.5, 0.5]))
        tensor([2., 4.])
    """
    first = rows[0]
    work_dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    factors = weights.to(first.device, work_dtype)
    total = torch.empty_like(first, dtype=work_dtype, memory_format=torch.contiguous_format)
    counting = factors.nonzero().flatten()
    in_place = isinstance(rows, Tensor) and rows.dtype == work_dtype and rows.stride(1) == 1
    spaces = local()  # a thread's own

    def work(columns: slice) -> None:
        if in_place:
            chunk = rows[:, columns]  # type: ignore[call-overload]
        else:
            if not hasattr(spaces, "space"):
                spaces.space = first.new_empty(len(rows) * min(BLOCK, len(first)), dtype=work_dtype)
            width = columns.stop - columns.start
            chunk = spaces.space[: len(rows) * width].view(len(rows), width)
            for place, row in zip(chunk, rows, strict=True):
                place.copy_(row[columns])
        found = torch.mv(chunk.T, factors, out=total[columns])
        if len(counting) < len(rows) and not bool(torch.isfinite(found.sum())):  # 0 · NaN is NaN
            torch.mv(chunk[counting].T, factors[counting], out=found)

    over_columns(len(total), BLOCK, work)
    return total.to(first.dtype)


def over_columns(size: int, width: int, work: Callable[[slice], None]) -> None:
    """Do some work on every chunk of so many columns, on as many threads as PyTorch may use.

    PyTorch itself does not spread operations on so few columns. Which thread takes which chunk makes no
    difference to a result: every chunk is worked on by itself.

    >>> over_columns(5, 2, print)
    slice(0, 2, None)
    slice(2, 4, None)
    slice(4, 5, None)
    """
    chunks = [slice(begin, min(begin + width, size)) for begin in range(0, size, width)]
    num_threads = min(torch.get_num_threads(), len(chunks) // 2)  # a thread costs more than a chunk or two
    if num_threads < 2:
        for chunk in chunks:
            work(chunk)
        return
    for done in _pool(num_threads).map(work, chunks):
        assert done is None


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads that stay: to start two takes as long as a rule on small rows."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="columns")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


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
