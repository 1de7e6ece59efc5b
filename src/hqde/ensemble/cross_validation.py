"""Which of several fits held-out rows speak for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NUM_FOLDS = 5
STANDARD_ERRORS = 2.0


def folds(num_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Five divisions of the rows, every fifth left out: positions to fit on, and to judge on.

    >>> [left.tolist() for _, left in folds(7)]
    [[0, 5], [1, 6], [2], [3], [4]]
    """
    fold_of = torch.arange(num_rows) % NUM_FOLDS
    for fold in range(NUM_FOLDS):
        yield (fold_of != fold).nonzero().flatten(), (fold_of == fold).nonzero().flatten()


def simplest(losses: Tensor) -> int:
    """The first candidate that is no more than two standard errors worse than the best.

    The error is that of the mean difference, row by row.

    Args:
        losses: (k, n) of k candidates, the simplest first, on n rows.

    >>> simplest(torch.tensor([[0.5, 0.7, 0.6], [0.5, 0.6, 0.6], [0.1, 0.2, 0.1]]))
    2

    Source: Breiman et al., "Classification and regression trees" (1984), for the rule, there of one error.
    """
    best = int(losses.mean(dim=1).argmin())
    for place in range(best):
        worse = losses[place] - losses[best]
        if float(worse.mean()) <= STANDARD_ERRORS * float(worse.std()) / losses.shape[1] ** 0.5:
            return place
    return best
