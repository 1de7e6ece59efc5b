"""Measurement: drawing classes from probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.errors import PreconditionError


def measure(probs: Tensor, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Measurements of the ensemble's state: one class each, as often as its probability says.

    In plain mathematics: ``num_samples`` independent draws from the categorical distribution of each row.

    Args:
        probs: ``(n, c)`` probabilities.
        num_samples: draws per row, at least 1.
        generator: on the device of ``probs``; the global one if None.

    Returns:
        ``(n, num_samples)`` int64 class ids. Classes of probability 0 are never drawn.

    Raises:
        PreconditionError: not ``(n, c)``, or no samples asked for.

    >>> measure(torch.tensor([[0.0, 1.0]]), 3).tolist()
    [[1, 1, 1]]
    """
    if probs.ndim != 2 or num_samples < 1:
        raise PreconditionError(
            f"measuring needs probabilities (n, c) and at least 1 sample, got {tuple(probs.shape)} and "
            f"{num_samples}."
        )
    if len(probs) == 0:
        return torch.zeros(0, num_samples, dtype=torch.int64, device=probs.device)
    return torch.multinomial(probs, num_samples, replacement=True, generator=generator)
