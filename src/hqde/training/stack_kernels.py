"""Loops over stacked workers, compiled by numba: each reads what it needs once or twice.

Arrays are ``(w, n, f)`` float32, contiguous: w workers, n rows, f features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hqde.compiling import compiled


@compiled()
def masks(words: Any, limits: Any, scales: Any, found: Any) -> None:
    """Of draws ``(w, k)``, int16: ``scales (w,)`` where ``limits (w,)`` are reached, else 0.

    Args:
        found: ``(w, c)``, c ≤ k, to be filled.
    """
    workers, count = found.shape
    zero = np.float32(0.0)
    for w in range(workers):
        limit, scale = limits[w], scales[w]
        for k in range(count):
            found[w, k] = scale if words[w, k] >= limit else zero


@compiled()
def normalised(z: Any, eps: float, mean: Any, variance: Any, rate: Any) -> None:
    """Mean and variance ``(w, f)`` of a worker's rows, and ``1 / √(variance + eps)``."""
    workers, rows, features = z.shape
    one = np.float32(1.0 / rows)
    for w in range(workers):
        middle, spread = mean[w], variance[w]
        middle[:] = np.float32(0.0)
        spread[:] = np.float32(0.0)
        for n in range(rows):
            for f in range(features):
                middle[f] += z[w, n, f]
        for f in range(features):
            middle[f] *= one
        for n in range(rows):
            for f in range(features):
                away = z[w, n, f] - middle[f]
                spread[f] += away * away
        for f in range(features):
            spread[f] *= one
            rate[w, f] = np.float32(1.0 / np.sqrt(spread[f] + eps))


@compiled()
def activated(z: Any, scale: Any, shift: Any, relu: bool, mask: Any, out: Any) -> None:
    """``scale · z + shift``, of that what is positive, if ``relu``, times the mask, if there is one."""
    workers, rows, features = z.shape
    zero = np.float32(0.0)
    for w in range(workers):
        for n in range(rows):
            for f in range(features):
                out[w, n, f] = z[w, n, f] * scale[w, f] + shift[w, f]
            if relu:
                for f in range(features):
                    value = out[w, n, f]
                    out[w, n, f] = zero if value < zero else value  # a NaN stays
            if len(mask):
                for f in range(features):
                    out[w, n, f] *= mask[w, n, f]


@compiled()
def passed_back(z: Any, scale: Any, shift: Any, relu: bool, mask: Any, gradient: Any) -> None:
    """The gradient of what ``activated`` gave, as that of ``scale · z + shift``, in its place."""
    workers, rows, features = z.shape
    zero = np.float32(0.0)
    for w in range(workers):
        for n in range(rows):
            if len(mask):
                for f in range(features):
                    gradient[w, n, f] *= mask[w, n, f]
            if relu:
                for f in range(features):
                    closed = z[w, n, f] * scale[w, f] + shift[w, f] <= zero
                    gradient[w, n, f] = zero if closed else gradient[w, n, f]


@compiled()
def unnormalised(
    z: Any, mean: Any, rate: Any, scale: Any, gradient: Any, towards_scale: Any, towards_shift: Any
) -> None:
    """The gradient of normalised, scaled and shifted rows, as that of the rows, in its place.

    Args:
        mean, rate: of ``normalised``.
        scale: ``(w, f)``: the learnt scale times ``rate``.
        towards_scale, towards_shift: ``(w, f)``: the gradients of the learnt scale and shift.
    """
    workers, rows, features = z.shape
    one = np.float32(1.0 / rows)
    for w in range(workers):
        first, second = towards_scale[w], towards_shift[w]
        first[:] = np.float32(0.0)
        second[:] = np.float32(0.0)
        for n in range(rows):
            for f in range(features):
                first[f] += gradient[w, n, f] * (z[w, n, f] - mean[w, f])
                second[f] += gradient[w, n, f]
        for f in range(features):
            first[f] *= rate[w, f]
        for n in range(rows):
            for f in range(features):
                standard = (z[w, n, f] - mean[w, f]) * rate[w, f]
                common = (second[f] + standard * first[f]) * one
                gradient[w, n, f] = scale[w, f] * (gradient[w, n, f] - common)


@compiled(sums_in_any_order=True)
def _squared_length(row: Any) -> float:
    total = np.float32(0.0)
    for value in row:
        total += value * value
    return float(total)


@compiled()
def adamw(
    rows: Any, gradients: Any, average: Any, square: Any, steps: Any, rates: Any, decay: Any, settings: Any
) -> None:
    """A step of AdamW of every row ``(d,)``, its gradient scaled to a norm of at most ``largest``.

    Args:
        rows, gradients, average, square: ``(w, d)``: parameters and what the optimizer keeps, in place.
        steps: ``(w,)``: made so far, with this one.
        rates: ``(w,)``.
        decay: ``(d,)``.
        settings: β₁, β₂, ε, and the largest norm; 0 for any.
    """
    beta1, beta2, epsilon, largest = settings
    one = np.float32(1.0)
    keep1, keep2, small = np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    new1, new2 = np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    for w in range(len(rows)):
        row, gradient, first, second = rows[w], gradients[w], average[w], square[w]
        factor = one
        if largest > 0.0:
            factor = np.float32(largest / (np.sqrt(_squared_length(gradient)) + 1e-6))
            factor = one if factor > one else factor  # a NaN stays
        rate = np.float32(rates[w])
        step = np.float32(rates[w] / (1.0 - beta1 ** steps[w]))
        widen = np.float32(1.0 / (1.0 - beta2 ** steps[w]))
        for k in range(len(row)):
            g = gradient[k] * factor
            first[k] = keep1 * first[k] + new1 * g
            second[k] = keep2 * second[k] + new2 * g * g
            row[k] = row[k] * (one - rate * decay[k]) - step * first[k] / (np.sqrt(second[k] * widen) + small)
