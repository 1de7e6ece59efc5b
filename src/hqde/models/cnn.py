"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hqde.errors import ConfigError
from hqde.models.arguments import check_count, check_counts, check_image_shape
from hqde.models.dropout import Dropout
from hqde.models.normalization import norm_layer


class CNN(nn.Module):
    """Blocks of 3x3 convolution, norm, ReLU and 2x2 max-pool, then dropout and a linear head.

    Every pool halves height and width, rounding down. With the default three blocks, 114,186 parameters for
    ten classes at 3x32x32, and images of 8x8 pixels are the smallest that fit. Weights start as torch sets
    them, uniform within ``1 / sqrt(fan_in)``; the norm that follows takes their scale out.

    Args:
        input_shape: ``(channels, height, width)`` of one image, in pixels.
        num_outputs: columns of the output.
        channels: output channels of each block.
        dropout_rate: chance in [0, 1) that a feature before the head is dropped in training.
        norm: ``"batch"`` or ``"group"`` (groups of 16 channels).

    Raises:
        ConfigError: the input is not an image, or is smaller than ``2 ** len(channels)`` pixels on a side,
            or a setting is out of range.

    >>> import torch
    >>> CNN((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        channels: Sequence[int] = (32, 64, 128),
        dropout_rate: float = 0.1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        widths = check_counts("channels", channels)
        if not widths:
            raise ConfigError("cnn needs at least one block, but channels is empty")
        width, height, breadth = check_image_shape("cnn", input_shape, min_side=2 ** len(widths))
        blocks: list[nn.Module] = []
        for next_width in widths:
            blocks += [
                nn.Conv2d(width, next_width, 3, padding=1),
                norm_layer(norm, next_width, spatial=True),
                # ReLU is monotone, so pooling first gives the same values and leaves a quarter of them to it.
                nn.MaxPool2d(2),
                nn.ReLU(inplace=True),
            ]
            width, height, breadth = next_width, height // 2, breadth // 2
        self.body = nn.Sequential(*blocks)
        self.dropout = Dropout(dropout_rate)
        self.head = nn.Linear(width * height * breadth, check_count("num_outputs", num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(n, num_outputs)`` for images ``(n, channels, height, width)``."""
        outputs: Tensor = self.head(self.dropout(self.body(inputs).flatten(1)))
        return outputs
