"""A multilayer perceptron for inputs of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from hqde.errors import ConfigError
from hqde.models.arguments import check_count, check_counts, check_dropout_rate
from hqde.models.dropout import Dropout
from hqde.models.normalization import norm_layer


class MLP(nn.Module):
    """Flatten, then hidden layers of linear, norm, ReLU and dropout, then a linear head.

    Weights start as torch sets them, uniform within ``1 / sqrt(fan_in)``.

    Args:
        input_shape: shape of one example; flattened to its product.
        num_outputs: columns of the output.
        hidden: widths of the hidden layers; empty makes the model linear.
        dropout_rate: chance in [0, 1) that a hidden activation is dropped in training.
        norm: ``"batch"``, or ``"group"``: each example normalised by itself over groups of at least 16
            neighbouring features, which for layers narrower than 32 is LayerNorm.

    Raises:
        ConfigError: a width, shape or rate is out of range, or the norm is unknown.

    >>> import torch
    >>> model = MLP((1, 8, 8), 10, hidden=(32,))
    >>> model(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        hidden: Sequence[int] = (128, 128),
        dropout_rate: float = 0.1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        shape = check_counts("input_shape", input_shape)
        if not shape:
            raise ConfigError("mlp needs at least one number per example, but input_shape is empty")
        rate = check_dropout_rate(dropout_rate)
        width = prod(shape)
        layers: list[nn.Module] = []
        for next_width in check_counts("hidden", hidden):
            layers += [nn.Linear(width, next_width), norm_layer(norm, next_width, spatial=False)]
            layers += [nn.ReLU(), Dropout(rate)]
            width = next_width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, check_count("num_outputs", num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(n, num_outputs)`` for ``inputs`` of shape ``(n, *input_shape)``."""
        outputs: Tensor = self.head(self.body(inputs.flatten(1)))
        return outputs
