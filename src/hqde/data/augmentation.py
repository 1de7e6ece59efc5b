"""Random crop, flip and cutout of whole image batches, as tensor operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from hqde.errors import ConfigError, PreconditionError


@dataclass(frozen=True)
class Augmentation:
    """Each image of a batch is shifted, mirrored and partly blanked, by its own draws.

    In this order, with one gather for all three: shift by whole pixels uniform in
    [-crop_padding, crop_padding] in both directions (zeros come in at the border), mirror left-right with
    probability 1/2, and set a square with its centre uniform over the image to zero (cut off at the border).
    Zero is the raw pixel value 0, or the mean colour when applied after normalisation.

    Args:
        crop_padding: largest shift in pixels; 0 for none.
        flip: mirror left-right.
        cutout: side of the blanked square in pixels; 0 for none.

    Source: crop and flip as in He et al., "Deep Residual Learning", 2016, section 4.2; cutout as in DeVries
    and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.

    >>> images = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
    >>> Augmentation(flip=True)(images, torch.Generator().manual_seed(1)).flatten().tolist()
    [1, 0, 3, 2]
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name, value in (("crop_padding", self.crop_padding), ("cutout", self.cutout)):
            if value < 0:
                raise ConfigError(f"{name} must be 0 or more pixels, not {value}")

    @property
    def enabled(self) -> bool:
        """Whether anything is changed at all."""
        return self.crop_padding > 0 or self.flip or self.cutout > 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed copies of the images.

        Args:
            images: (n, c, h, w), any dtype; not changed.
            generator: where the draws come from; moved on by the same amount for the same n.

        Returns:
            (n, c, h, w) of the same dtype and device; ``images`` itself when nothing is enabled.

        Raises:
            PreconditionError: not four dimensions.
        """
        if images.ndim != 4:
            raise PreconditionError(
                f"augmentation needs images (n, c, h, w), not {tuple(images.shape)}; "
                "switch it off for such inputs"
            )
        if not self.enabled or images.numel() == 0:
            return images
        count, channels, height, width = images.shape
        device = images.device
        margin = max(self.crop_padding, 1)  # at least one border pixel, to read zeros from
        stride = width + 2 * margin

        def draw(low: int, high: int) -> Tensor:
            """Whole numbers uniform in [low, high), one per image, (n, 1)."""
            drawn = torch.randint(low, high, (count, 1), generator=generator, device=generator.device)
            return drawn.to(device)

        rows = torch.arange(height, device=device).expand(count, height)
        columns = torch.arange(width, device=device).expand(count, width)
        if self.flip:
            columns = torch.where(draw(0, 2) == 1, width - 1 - columns, columns)
        source_rows, source_columns = rows + margin, columns + margin
        if self.crop_padding:
            source_rows = source_rows + draw(-self.crop_padding, self.crop_padding + 1)
            source_columns = source_columns + draw(-self.crop_padding, self.crop_padding + 1)
        index = (source_rows * stride).unsqueeze(2) + source_columns.unsqueeze(
            1
        )  # (n, h, w) into padded images
        if self.cutout:
            top = draw(0, height) - self.cutout // 2
            left = draw(0, width) - self.cutout // 2
            plain_columns = torch.arange(width, device=device).expand(count, width)
            in_rows = (rows >= top) & (rows < top + self.cutout)
            in_columns = (plain_columns >= left) & (plain_columns < left + self.cutout)
            index = index.masked_fill(in_rows.unsqueeze(2) & in_columns.unsqueeze(1), 0)
        padded = pad(images, (margin, margin, margin, margin)).flatten(2)
        picked = padded.gather(2, index.reshape(count, 1, -1).expand(-1, channels, -1))
        return picked.view(count, channels, height, width)
