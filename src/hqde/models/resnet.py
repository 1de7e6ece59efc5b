"""The 18-layer residual network, for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from hqde.models.arguments import check_count, check_image_shape
from hqde.models.dropout import Dropout
from hqde.models.normalization import norm_layer

MIN_SIDE = 8


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))``, the first convolution and shortcut strided.

    The shortcut is the identity, or a strided 1x1 convolution with norm where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, out_channels, spatial=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, out_channels, spatial=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                norm_layer(norm, out_channels, spatial=True),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """``(n, in, h, w)`` to ``(n, out, ceil(h / stride), ceil(w / stride))``."""
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pool, for images of about 32x32.

    Four stages of two residual blocks (64, 128, 256, 512 channels; each later stage halves the image), global
    average pool, dropout, linear head. 11,173,962 parameters for ten classes and three channels. Convolutions
    start normal with variance ``2 / fan_out`` (He et al., "Delving Deep into Rectifiers", 2015, eq. 14).

    Args:
        input_shape: ``(channels, height, width)`` of one image, in pixels; sides of at least 8.
        num_outputs: columns of the output.
        dropout_rate: chance in [0, 1) that a feature before the head is dropped in training.
        norm: ``"batch"`` or ``"group"`` (groups of 16 channels).

    Raises:
        ConfigError: the input is not an image of at least 8x8, or a setting is out of range.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), table 1, with the stem of
    section 4.2.

    >>> import torch
    >>> ResNet18((3, 32, 32), 10).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        dropout_rate: float = 0.1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        in_channels, _, _ = check_image_shape("resnet18", input_shape, min_side=MIN_SIDE)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1, bias=False),
            norm_layer(norm, 64, spatial=True),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        width = 64
        for next_width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [
                ResidualBlock(width, next_width, stride=stride, norm=norm),
                ResidualBlock(next_width, next_width, stride=1, norm=norm),
            ]
            width = next_width
        self.body = nn.Sequential(*blocks)
        self.dropout = Dropout(dropout_rate)
        self.head = nn.Linear(width, check_count("num_outputs", num_outputs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(n, num_outputs)`` for images ``(n, channels, height, width)``."""
        features = self.body(self.stem(inputs)).mean(dim=(2, 3))
        outputs: Tensor = self.head(self.dropout(features))
        return outputs
