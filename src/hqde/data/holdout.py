"""Which rows are held out."""

from __future__ import annotations

from math import ceil, floor

import torch
from torch import Tensor

from hqde.errors import DataError
from hqde.seeding import generator


def hold_out(
    targets: Tensor, fraction: float, *, seed: int, purpose: str, stratify: bool
) -> tuple[Tensor, Tensor]:
    """Draw round(fraction · n) rows to hold out.

    With ``stratify`` each class gives its share, the largest fractions rounded up, and keeps at least one row
    (so when most classes have a single row, fewer are held out).

    Args:
        targets: (n,) class ids or values.
        fraction: in (0, 1).
        seed: the only source of chance.
        purpose: ``"validation"`` or ``"test"``; names the random stream, and the setting in errors.
        stratify: hold out class by class.

    Returns:
        Kept and held-out row numbers, (n - k,) and (k,) int64, each ascending.

    Raises:
        DataError: the fraction rounds to no row, or leaves none.

    >>> targets = torch.tensor([0, 1] * 10)
    >>> kept, held = hold_out(targets, 0.2, seed=0, purpose="validation", stratify=True)
    >>> len(kept), len(held), int(targets[held].sum())
    (16, 4, 2)
    """
    num_rows = len(targets)
    num_held = floor(fraction * num_rows + 0.5)
    if not 0 < num_held < num_rows:
        needed = max(ceil(0.5 / fraction), floor(0.5 / (1 - fraction)) + 1, 2)
        raise DataError(
            f"too few samples for a {purpose} split: {purpose}_fraction={fraction} of {num_rows} rows is "
            f"{num_held}, leaving {num_rows - num_held}; give at least {needed} rows "
            f"or another {purpose}_fraction"
        )
    order = torch.randperm(num_rows, generator=generator(seed, "data", purpose))
    if stratify:
        held = _held_by_class(targets, order, num_held)
        if len(held) == 0:
            raise DataError(
                f"too few samples for a {purpose} split: each of the {num_rows} classes has a single row; "
                "give at least 2 rows of a class"
            )
    else:
        held = order[:num_held]
    is_held = torch.zeros(num_rows, dtype=torch.bool)
    is_held[held] = True
    return (~is_held).nonzero().squeeze(1), is_held.nonzero().squeeze(1)


def _held_by_class(targets: Tensor, order: Tensor, num_held: int) -> Tensor:
    """The first rows in ``order`` of every class, as many as the class's quota."""
    _, class_of_row, sizes = torch.unique(targets, return_inverse=True, return_counts=True)
    by_class = order[
        torch.argsort(class_of_row[order], stable=True)
    ]  # class 0's rows first, each class in order
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order)) - starts.repeat_interleave(sizes)
    return by_class[rank < _quota(sizes, num_held).repeat_interleave(sizes)]


def _quota(sizes: Tensor, num_held: int) -> Tensor:
    """Rows to hold out per class: num_held · size / n by largest remainders, at most size - 1."""
    most = sizes - 1
    exact = sizes.to(torch.float64) * num_held / int(sizes.sum())
    quota = torch.minimum(exact.floor().to(torch.int64), most)
    for _ in range(min(num_held, int(most.sum())) - int(quota.sum())):
        quota[int(torch.where(quota < most, exact - quota, -torch.inf).argmax())] += 1
    return quota
