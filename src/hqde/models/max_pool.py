"""What a max-pool does."""

from __future__ import annotations

from torch import nn


def halves(pool: nn.MaxPool2d) -> bool:
    """Whether it takes the largest of every 2 × 2, of whole windows only, and nothing else."""
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (pool.kernel_size, pool.stride)]
    plain = (pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices) == (0, 1, False, False)
    return plain and pairs == [(2, 2), (2, 2)]
