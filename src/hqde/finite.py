"""Whether vectors are finite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def has_finite_sum(values: Tensor) -> bool:
    """Whether the sum of all numbers is finite; then so are they. ``False`` says nothing: a sum may overflow.

    On this thread alone: PyTorch's own threads, once woken, keep others from their work for a millisecond.

    >>> has_finite_sum(torch.ones(3)), has_finite_sum(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return bool(torch.isfinite(values.sum()))
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.detach().numpy().sum()))
