"""Whether vectors are finite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor


def has_finite_sum(values: Tensor) -> bool:
    """Whether the sum of all numbers is finite; then so are they. ``False`` says nothing: a sum may overflow.

    On this thread alone: PyTorch's own threads, once woken, keep others from their work for a millisecond.

    >>> has_finite_sum(torch.ones(3)), has_finite_sum(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    plain = values.device.type == "cpu" and not values.is_neg() and type(values) is Tensor
    if not plain or values.dtype not in (torch.float32, torch.float64) or is_functorch_wrapped_tensor(values):
        return bool(torch.isfinite(values.sum()))
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.detach().numpy().sum()))


def is_finite(values: Tensor) -> bool:
    """Whether all numbers are finite; quick, unless their sum is not.

    >>> is_finite(torch.tensor([1e38, 3e38])), is_finite(torch.tensor([1.0, float("inf")]))
    (True, False)
    """
    return has_finite_sum(values) or bool(torch.isfinite(values).all())
