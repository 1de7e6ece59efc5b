"""The two ways the reference networks normalise activations inside."""

from __future__ import annotations

from torch import nn

from hqde.errors import ConfigError, did_you_mean

NORMS = ("batch", "group")
MIN_GROUP_SIZE = 16


def group_count(num_channels: int) -> int:
    """The number of groups GroupNorm gets: as many as divide the channels with at least 16 in each.

    At least one; one group over a whole feature vector is LayerNorm. Sixteen channels to a group is the
    fixed-size setting of Wu & He, "Group Normalization" (2018), table 3.

    Args:
        num_channels: channels of an image layer, or features of a flat one.

    >>> [group_count(c) for c in (32, 64, 128, 48, 20, 7)]
    [2, 4, 8, 3, 1, 1]
    """
    return max(g for g in range(1, max(1, num_channels // MIN_GROUP_SIZE) + 1) if num_channels % g == 0)


def norm_layer(norm: str, num_channels: int, *, spatial: bool) -> nn.Module:
    """A normalisation layer for ``num_channels`` channels.

    ``batch`` is BatchNorm, with running statistics as buffers. ``group`` is GroupNorm with `group_count`
    groups: no buffers and no dependence on the batch, so batches of one and averaged workers behave alike.

    Args:
        norm: ``"batch"`` or ``"group"``.
        num_channels: channels, or features where ``spatial`` is false.
        spatial: whether inputs are images ``(n, c, h, w)`` or flat ``(n, c)``.

    Raises:
        ConfigError: an unknown norm, or a flat group norm over one feature, whose output is always its bias.

    >>> norm_layer("group", 64, spatial=True).num_groups
    4
    """
    check_norm(norm)
    if norm == "batch":
        return nn.BatchNorm2d(num_channels) if spatial else nn.BatchNorm1d(num_channels)
    if not spatial and num_channels == 1:
        raise ConfigError(
            "norm='group' over a layer of 1 feature is constant; use 2 or more, or norm='batch'"
        )
    return nn.GroupNorm(group_count(num_channels), num_channels)


def check_norm(norm: str) -> None:
    """Raise ConfigError unless ``norm`` is one of `NORMS`."""
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r}: {did_you_mean(str(norm), NORMS)}")
