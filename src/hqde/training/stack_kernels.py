"""Loops over stacked workers, compiled by numba: each reads what it needs once or twice."""

from __future__ import annotations

from typing import Any

import numpy as np

from hqde.compiling import compiled


@compiled()
def masks(words: Any, first: int, limits: Any, scales: Any, found: Any) -> None:
    """Of draws ``(w, k)``, int16: ``scales (w,)`` where ``limits (w,)`` are reached, else 0.

    Args:
        first: the draw that each worker's masks begin with.
        found: ``(w, c)``, c ≤ k - first, to be filled.
    """
    workers, count = found.shape
    zero = np.float32(0.0)
    for w in range(workers):
        limit, scale, own = limits[w], scales[w], words[w, first : first + count]
        for k in range(count):
            found[w, k] = scale if own[k] >= limit else zero


@compiled(sums_in_any_order=True)
def _squared_length(row: Any) -> float:
    total = np.float32(0.0)
    for value in row:
        total += value * value
    return float(total)


@compiled()
def _clip_factor(gradient: Any, largest: float) -> float:
    """What scales a gradient to a norm of at most ``largest``, as ``clip_grad_norm_`` does; 0 is any norm."""
    if largest <= 0.0:
        return 1.0
    factor = largest / (np.sqrt(_squared_length(gradient)) + 1e-6)
    return 1.0 if factor > 1.0 else factor  # a NaN stays


@compiled()
def adamw_row(
    row: Any, gradient: Any, average: Any, square: Any, step: float, rate: float, decay: Any, settings: Any
) -> None:
    """A step of AdamW of a row ``(d,)``.

    Args:
        row, gradient, average, square: ``(d,)``: parameters and what the optimizer keeps, in place.
        step: made so far, with this one.
        rate: of this step.
        decay: ``(d,)``.
        settings: β₁, β₂, ε, and the gradient's largest norm; 0 for any.
    """
    beta1, beta2, epsilon, largest = settings
    one = np.float32(1.0)
    keep1, keep2, small = np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    new1, new2 = np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    factor = np.float32(_clip_factor(gradient, largest))
    whole, shrink = np.float32(rate), np.float32(rate / (1.0 - beta1**step))
    widen = np.float32(1.0 / (1.0 - beta2**step))
    for k in range(len(row)):
        g = gradient[k] * factor
        average[k] = keep1 * average[k] + new1 * g
        square[k] = keep2 * square[k] + new2 * g * g
        away = np.sqrt(square[k] * widen) + small
        row[k] = row[k] * (one - whole * decay[k]) - shrink * average[k] / away


@compiled()
def sgd_row(row: Any, gradient: Any, buffer: Any, rate: float, decay: Any, settings: Any) -> None:
    """A step of SGD of a row ``(d,)``.

    Args:
        row, gradient, buffer: ``(d,)``: parameters and momentum, in place.
        rate: of this step.
        decay: ``(d,)``.
        settings: momentum, 1 for Nesterov's, nothing, and the gradient's largest norm; 0 for any.
    """
    keep, ahead, whole = np.float32(settings[0]), settings[1] > 0.0, np.float32(rate)
    factor = np.float32(_clip_factor(gradient, settings[3]))
    for k in range(len(row)):
        g = gradient[k] * factor + decay[k] * row[k]
        buffer[k] = keep * buffer[k] + g
        row[k] -= whole * (g + keep * buffer[k] if ahead else buffer[k])


@compiled()
def adamw(
    rows: Any, gradients: Any, average: Any, square: Any, steps: Any, rates: Any, decay: Any, settings: Any
) -> None:
    """``adamw_row`` of every row of ``(w, d)``; steps and rates are ``(w,)``."""
    for w in range(len(rows)):
        adamw_row(rows[w], gradients[w], average[w], square[w], steps[w], rates[w], decay, settings)
