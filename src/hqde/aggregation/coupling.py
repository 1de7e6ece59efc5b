"""Weights drawn to a centre: the one step that all elastic coupling is made of."""

from __future__ import annotations

import torch
from torch import Tensor


def pulled(vector: Tensor, centre: Tensor, pull: float) -> Tensor:
    """``vector + pull · (centre − vector)``, exact at both ends: 0 gives the vector's bits, 1 the centre's.

    Args:
        vector: ``(d,)`` floating.
        centre: ``(d,)``.
        pull: from 0 to 1.

    Returns:
        ``(d,)``, a new tensor. Between a positive vector and a positive centre it is positive, so running
        variances may be pulled too.

    Example:
        >>> pulled(torch.tensor([0.0, 4.0]), torch.tensor([2.0, 2.0]), 0.25)
        tensor([0.5000, 3.5000])

    Source: Zhang, Choromanska, LeCun 2015, "Deep learning with elastic averaging SGD", equation 3.
    """
    return torch.lerp(vector, centre, pull)
