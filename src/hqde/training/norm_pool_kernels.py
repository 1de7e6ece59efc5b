"""Loops over images in NHWC order, compiled by numba, side by side on PyTorch's threads.

Images are float32, or bfloat16 as the uint16 of their bits. Channels are the innermost loop, so that the
compiler computes many of them at once; sums go over rows in order and are never reordered, so that results
repeat, and do not depend on the number of threads. Floating-point rules are those of IEEE 754 but for fused
products and sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from hqde.compiling import compiled
from hqde.team import over_slices

ROWS_AT_ONCE = 512  # summed in float32 before they join the total in float64

# Sums are taken around the median of so many pixels: near the mean, however far some numbers are out.
ROWS_LOOKED_AT = 64


def number(stored: Any) -> Any:
    """What is stored, as float32."""
    raise NotImplementedError("for compiled code")


def stored_like(value: Any, like: Any) -> Any:
    """A float32, rounded to nearest even, as what ``like`` is stored as."""
    raise NotImplementedError("for compiled code")


@overload(number, inline="always")
def _number(stored: Any) -> Any:
    def widened(stored: Any) -> Any:
        return np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)

    def same(stored: Any) -> Any:
        return stored

    return widened if isinstance(stored, types.Integer) else same


@overload(stored_like, inline="always")
def _stored_like(value: Any, like: Any) -> Any:  # noqa: ARG001
    def rounded(value: Any, like: Any) -> Any:  # noqa: ARG001 - numba wants the same names
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    def same(value: Any, like: Any) -> Any:  # noqa: ARG001
        return np.float32(value)

    return rounded if isinstance(like, types.Integer) else same


def normalised(
    images: Any,
    learnt: Any,
    running: Any,
    eps: float,
    momentum: float,
    numbers: Any,
    out: Any,
    chosen: Any,
    reached: Any,
) -> None:
    """``relu(max over 2 × 2 of batch_norm(x))``: images ``(n, h, w, c)`` to ``(n, h // 2, w // 2, c)``.

    Args:
        images: as they are stored.
        learnt: scale and shift ``(c,)``.
        running: mean and variance ``(c,)``, moved on by ``momentum``.
        eps: added to variances.
        momentum: the share of this batch in the running statistics.
        numbers: ``(2, c)`` float64, gets the mean and 1 / √(variance + eps).
        out: stored as the images are.
        chosen: uint8, where in its window the largest stands, row by row, the first of equals; 4 where the
            ReLU lets nothing through.
        reached: stored as the images are, the number that stands there, so that the way back need not read
            the images for it.
    """
    channels = images.shape[-1]
    rows = images.reshape(-1, channels)
    origin = _medians(rows)
    parts = np.empty((-(-len(rows) // ROWS_AT_ONCE), 2, channels), np.float32)

    def sum_up(blocks: slice) -> None:
        some = rows[blocks.start * ROWS_AT_ONCE : blocks.stop * ROWS_AT_ONCE]
        _moments(some, origin, parts[blocks])

    over_slices(len(parts), sum_up)
    transform = np.empty((2, channels), np.float32)
    _standardise(len(rows), origin, parts, learnt, running, eps, momentum, numbers, transform)
    over_slices(
        len(images), lambda some: _pooled(images[some], transform, out[some], chosen[some], reached[some])
    )


def sent_back(
    images: Any, learnt: Any, numbers: Any, chosen: Any, reached: Any, gradients: Any, towards: Any
) -> None:
    """The gradients of ``normalised``, those of the images in their place.

    Args:
        images: the same; what they hold is lost.
        learnt, numbers, chosen, reached: as it left them.
        gradients: of what it gave.
        towards: scale and shift ``(c,)``, get their gradients.
    """
    count, height, width, channels = images.shape
    parts = np.empty((count, 2, channels), np.float32)
    over_slices(count, lambda some: _pulls(chosen[some], reached[some], gradients[some], parts[some]))
    transform = np.empty((3, channels), np.float32)
    _differentiate(count * height * width, parts, learnt, numbers, towards, transform)
    over_slices(count, lambda some: _pushed_back(images[some], chosen[some], gradients[some], transform))


@compiled()
def _total(parts: Any) -> Any:
    """The sums ``(2, c)``, float64, of parts ``(n, 2, c)``, in their order."""
    found = np.zeros(parts.shape[1:])
    for part in parts:
        for i in range(len(found)):
            for c in range(found.shape[1]):
                found[i, c] += np.float64(part[i, c])
    return found


@compiled()
def _standardise(
    count: int,
    origin: Any,
    parts: Any,
    learnt: Any,
    running: Any,
    eps: float,
    momentum: float,
    numbers: Any,
    transform: Any,
) -> None:
    """From what ``_moments`` gave of ``count`` rows: statistics, and scale and shift ``(2, c)`` of rows."""
    sums, squares = _total(parts)
    scale, shift = transform[0], transform[1]
    for c in range(len(sums)):
        away = sums[c] / count
        mean, variance = away + origin[c], squares[c] / count - away * away
        variance = 0.0 if variance < 0.0 else variance  # a NaN stays
        rate = 1.0 / np.sqrt(variance + eps)
        numbers[0, c], numbers[1, c] = mean, rate
        scale[c], shift[c] = learnt[0][c] * rate, learnt[1][c] - mean * learnt[0][c] * rate
        running[0][c] += momentum * (mean - running[0][c])
        running[1][c] += momentum * (variance * count / (count - 1) - running[1][c])


@compiled()
def _differentiate(count: int, parts: Any, learnt: Any, numbers: Any, towards: Any, transform: Any) -> None:
    """From what ``_pulls`` gave: gradients of scale and shift, and for those of ``count`` rows ``(3, c)``
    the scale of what comes back, a constant, and the slope along the row."""
    sums, products = _total(parts)
    scale, constant, slope = transform[0], transform[1], transform[2]
    for c in range(len(sums)):
        mean, rate = numbers[0, c], numbers[1, c]
        standard = (products[c] - mean * sums[c]) * rate  # Σ gradient · normalised input
        towards[0][c], towards[1][c] = standard, sums[c]
        scale[c] = learnt[0][c] * rate
        steepness = -scale[c] * rate * standard / count
        slope[c], constant[c] = steepness, -scale[c] * sums[c] / count - steepness * mean


@compiled()
def _medians(rows: Any) -> Any:
    """The lower median ``(c,)`` of about ``ROWS_LOOKED_AT`` numbers of each column of ``(n, c)``."""
    every = -(-len(rows) // ROWS_LOOKED_AT)
    looked_at, channels = -(-len(rows) // every), rows.shape[1]
    values = np.empty((looked_at, channels), np.float32)
    for row in range(looked_at):
        for c in range(channels):
            values[row, c] = number(rows[row * every, c])
    middle = (looked_at - 1) // 2
    found = np.zeros(channels, np.float32)
    below, up_to = np.empty(channels, np.int32), np.empty(channels, np.int32)
    for row in range(looked_at):
        below[:] = 0
        up_to[:] = 0
        for other in range(looked_at):
            for c in range(channels):
                below[c] += np.int32(values[other, c] < values[row, c])
                up_to[c] += np.int32(values[other, c] <= values[row, c])
        for c in range(channels):
            found[c] = values[row, c] if below[c] <= middle < up_to[c] else found[c]
    return found


@compiled()
def _moments(rows: Any, origin: Any, parts: Any) -> None:
    """Sums of numbers minus ``origin (c,)``, and of their squares, over ``ROWS_AT_ONCE`` of the rows
    ``(n, c)`` for each of the parts ``(⌈n / ROWS_AT_ONCE⌉, 2, c)``."""
    count, channels = rows.shape
    sums, squares = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for block in range(len(parts)):
        sums[:] = 0.0
        squares[:] = 0.0
        begin = block * ROWS_AT_ONCE
        for row in range(begin, min(begin + ROWS_AT_ONCE, count)):
            for c in range(channels):
                value = number(rows[row, c]) - origin[c]
                sums[c] += value
                squares[c] += value * value
        parts[block, 0], parts[block, 1] = sums, squares


@compiled()
def _pooled(images: Any, transform: Any, out: Any, chosen: Any, reached: Any) -> None:
    """``relu(max over 2 × 2 of (scale · x + shift))``; other arguments as for ``normalised``."""
    count, height, width, channels = out.shape
    scale, shift = transform[0], transform[1]
    zero = np.float32(0.0)
    for n in range(count):
        for h in range(height):
            for w in range(width):
                for c in range(channels):
                    factor = scale[c]
                    stored_first, stored_second = images[n, 2 * h, 2 * w, c], images[n, 2 * h, 2 * w + 1, c]
                    stored_third = images[n, 2 * h + 1, 2 * w, c]
                    stored_fourth = images[n, 2 * h + 1, 2 * w + 1, c]
                    first, second = number(stored_first) * factor, number(stored_second) * factor
                    third, fourth = number(stored_third) * factor, number(stored_fourth) * factor
                    upper = second if second > first else first
                    lower = fourth if fourth > third else third
                    value = (lower if lower > upper else upper) + shift[c]
                    above = np.uint8(1) if second > first else np.uint8(0)
                    below = np.uint8(3) if fourth > third else np.uint8(2)
                    where = below if lower > upper else above
                    chosen[n, h, w, c] = np.uint8(4) if value <= zero else where
                    over = stored_second if second > first else stored_first
                    under = stored_fourth if fourth > third else stored_third
                    reached[n, h, w, c] = under if lower > upper else over
                    value = zero if value < zero else value  # a NaN is not below 0 and stays one
                    out[n, h, w, c] = stored_like(value, images[n, 0, 0, c])


@compiled()
def _pulls(chosen: Any, reached: Any, gradients: Any, parts: Any) -> None:
    """Sums ``(n, 2, c)`` of each image's gradients that pass the ReLU, and of these times what they reach."""
    count, height, width, channels = chosen.shape
    sums, products = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    zero = np.float32(0.0)
    for n in range(count):
        sums[:] = 0.0
        products[:] = 0.0
        for h in range(height):
            for w in range(width):
                for c in range(channels):
                    passes = number(gradients[n, h, w, c])
                    passes = zero if chosen[n, h, w, c] == 4 else passes
                    sums[c] += passes
                    products[c] += passes * number(reached[n, h, w, c])
        parts[n, 0], parts[n, 1] = sums, products


@compiled()
def _pushed_back(images: Any, chosen: Any, gradients: Any, transform: Any) -> None:
    """Put ``constant + slope · x``, and what comes back to the largest of each 2 × 2, in place of each x."""
    count, height, width, channels = chosen.shape
    scale, constant, slope = transform[0], transform[1], transform[2]
    zero = np.float32(0.0)
    for n in range(count):
        for h in range(height):
            for w in range(width):
                for place in range(4):  # a loop for each: with more memory to tell apart none is vectorised
                    row, column = 2 * h + place // 2, 2 * w + place % 2
                    for c in range(channels):
                        back = number(gradients[n, h, w, c]) * scale[c]
                        back = back if chosen[n, h, w, c] == place else zero
                        stored = images[n, row, column, c]
                        images[n, row, column, c] = stored_like(
                            constant[c] + slope[c] * number(stored) + back, stored
                        )
    for n in range(count):  # what no window covers: the last row and column of odd sides
        for h in range(images.shape[1]):
            for w in range(0 if h >= 2 * height else 2 * width, images.shape[2]):
                for c in range(channels):
                    stored = images[n, h, w, c]
                    images[n, h, w, c] = stored_like(constant[c] + slope[c] * number(stored), stored)
