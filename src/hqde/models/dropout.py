"""Dropout that draws from a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hqde.errors import PreconditionError
from hqde.models.arguments import check_dropout_rate

LEVELS = 2**16

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` with a generator: in training, ``y = x · m / (1 - p)`` with m of Bernoulli(1 - p).

    A model that draws from torch's global generator makes workers of one process wait for each other, because
    they share it. One that drops with this layer does not: every worker gives its layers a generator of its
    own (`draw_dropout_from`). It is one of PyTorch's kind, so that what looks for those finds it.

    Args:
        rate: p in [0, 1), the chance that an element becomes 0; with a generator, the nearest multiple of
            1/65536.

    Raises:
        ConfigError: the rate is out of range.
        PreconditionError: it is called again in a backward pass (activation checkpointing).

    Example:
        >>> layer = Dropout(0.5)
        >>> draw_dropout_from(torch.Generator().manual_seed(0), layer)
        >>> sorted(set(layer(torch.ones(64)).tolist())), layer.eval()(torch.ones(2)).tolist()
        ([0.0, 2.0], [1.0, 1.0])
    """

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__(check_dropout_rate(rate))
        self.source: MaskSource | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs, in training with some elements 0 and the others scaled; any shape."""
        if not self.training or self.p == 0.0:
            return inputs
        if self.source is None:
            return functional.dropout(inputs, self.p)
        if torch._C._current_graph_task_id() != -1:  # in a backward pass
            raise PreconditionError(
                "activation checkpointing calls hqde.models.Dropout again, which would draw another mask "
                "than in the forward pass; take torch.nn.Dropout there"
            )
        return inputs * self.source(self, inputs)


MaskSource = Callable[[Dropout, Tensor], Tensor]
"""Where a layer's masks come from, scaled, in the shape and dtype of its inputs."""


def draw_mask(rate: float, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A mask: 0 with chance ``rate``, to the nearest 1/65536, else what makes up for it.

    >>> sorted(set(draw_mask(0.5, (64,), torch.float32, torch.Generator().manual_seed(0)).tolist()))
    [0.0, 2.0]
    """
    dropped, count = min(LEVELS - 1, round(rate * LEVELS)), prod(shape)
    # Four draws of 16 bits from each of 64: half the time of drawing one by one.
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    limit = torch.tensor(dropped - LEVELS // 2, dtype=torch.int16)
    scale = torch.tensor(LEVELS / (LEVELS - dropped))
    return scaled_mask(words.view(torch.int16)[:count].view(tuple(shape)), limit, scale, dtype)


def scaled_mask(draws: Tensor, limit: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale`` where draws reach their limit, else 0.

    Args:
        draws: int16, of any shape.
        limit, scale: int16 and float32, of shapes that broadcast; single ones may be on the CPU.
        dtype: of the mask.

    >>> draws = torch.tensor([1, 5], dtype=torch.int16)
    >>> scaled_mask(draws, torch.tensor(3), torch.tensor(2.0), torch.float32)
    tensor([0., 2.])
    """
    if draws.device.type != "cpu" or dtype not in _BITS:
        return (draws >= limit).to(dtype).mul_(scale.to(dtype))
    bits = scale.to(dtype).view(_BITS[dtype]).numpy()
    kept = (draws.numpy() >= limit.numpy()).view(np.uint8)
    return torch.from_numpy(np.multiply(kept, bits, dtype=bits.dtype)).view(dtype)  # a tenth of the time


def draw_dropout_from(generator: torch.Generator, model: nn.Module) -> None:
    """Let every `Dropout` in ``model`` draw from ``generator``, on the model's device."""
    set_mask_source(lambda layer, inputs: draw_mask(layer.p, inputs.shape, inputs.dtype, generator), model)


def set_mask_source(source: MaskSource, model: nn.Module) -> None:
    """Let every `Dropout` in ``model`` that drops at all take its masks from ``source`` while it trains."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.source = source
