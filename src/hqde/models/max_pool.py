"""Max-pools that compare whole rows, and those that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HalvingMaxPool(nn.Module):
    """``nn.MaxPool2d(2)``, to the bit, without the positions of the largest values.

    Args:
        as_integers: compare bfloat16 numbers as the integers that their bits are, three times as fast. Right
            where a ReLU follows: only among negative numbers is the order another one, and a NaN whose sign
            bit is set may give way to a number.

    >>> image = torch.tensor([[[[1.0, 2.0, 9.0], [4.0, 3.0, 9.0]]]])
    >>> HalvingMaxPool()(image)
    tensor([[[[4.]]]])
    """

    def __init__(self, *, as_integers: bool = False) -> None:
        super().__init__()
        self.as_integers = as_integers

    def forward(self, inputs: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` to ``(n, c, h // 2, w // 2)``."""
        if self.as_integers and inputs.dtype == torch.bfloat16:
            return self._largest(inputs.view(torch.int16)).view(torch.bfloat16)
        return self._largest(inputs)

    def _largest(self, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[-2] // 2 * 2, inputs.shape[-1] // 2 * 2
        points = inputs.movedim(-3, -1)[..., :height, :width, :]  # contiguous where convolutions are fast
        lines = torch.maximum(points[..., 0::2, :, :], points[..., 1::2, :, :])
        return torch.maximum(lines[..., 0::2, :], lines[..., 1::2, :]).movedim(-1, -3)


def halves(pool: nn.MaxPool2d) -> bool:
    """Whether it takes the largest of every 2 × 2, of whole windows only, and nothing else."""
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (pool.kernel_size, pool.stride)]
    plain = (pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices) == (0, 1, False, False)
    return plain and pairs == [(2, 2), (2, 2)]
