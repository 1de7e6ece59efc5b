"""Checks that the reference networks make of what they are built from."""

from __future__ import annotations

from collections.abc import Sequence

from hqde.errors import ConfigError


def check_count(name: str, value: object) -> int:
    """``value`` as an int of at least 1, or ConfigError naming the setting."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def check_counts(name: str, values: object) -> tuple[int, ...]:
    """``values`` as a tuple of whole numbers of at least 1 (possibly empty), or ConfigError."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{name} must be a list of whole numbers, got {values!r}")
    return tuple(check_count(f"{name}[{i}]", value) for i, value in enumerate(values))


def check_dropout_rate(value: object) -> float:
    """``value`` as a float in [0, 1), or ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ConfigError(f"dropout_rate must be at least 0 and below 1, got {value!r}")
    return float(value)


def check_image_shape(model: str, input_shape: object, *, min_side: int) -> tuple[int, int, int]:
    """``input_shape`` as ``(c, h, w)`` with both sides at least ``min_side`` pixels, or ConfigError."""
    shape = check_counts("input_shape", input_shape)
    if len(shape) != 3:
        raise ConfigError(
            f"{model} needs images (channels, height, width), but one example has shape {shape}; "
            "use model 'mlp'"
        )
    channels, height, width = shape
    if min(height, width) < min_side:
        raise ConfigError(
            f"{model} needs images of at least {min_side}x{min_side} pixels, got {height}x{width}; "
            "use model 'mlp' or larger images"
        )
    return channels, height, width
