"""Steps of stacked workers, compiled by numba: of optimizers, and whole ones of perceptrons.

Of perceptrons Python is asked once for all workers and layers. A worker's rows, weights and gradients stay in
the cache of the core that it trains on. Matrix products are those of SciPy's BLAS. All stand in one file,
because numba does not see that a loop in another one has changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hqde.compiling import compiled

# Columns of the table of stages; places are in a worker's row of parameters, in its running statistics or in
# the workspace, and -1 where there is none.
INPUTS, OUTPUTS, WEIGHT, BIAS, SCALE, SHIFT, RUNNING, RELU, DROPOUT, Z, NUMBERS, OUT = range(12)

CROSS_ENTROPY, MSE, GAUSSIAN_NLL = range(3)
NO_UPDATE, ADAMW, SGD = range(3)


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


@compiled()
def _block(space: Any, start: int, rows: int, columns: int) -> Any:
    return space[start : start + rows * columns].reshape(rows, columns)


@compiled()
def _normalise(
    z: Any, eps: float, momentum: float, scale: Any, shift: Any, running: Any, numbers: Any
) -> None:
    """``numbers (4, f)`` of ``z (n, f)``: mean, 1 / √(variance + eps), factor and summand of each feature.

    Args:
        scale, shift: ``(f,)`` learnt.
        running: ``(2, f)`` mean and variance, moved on.
    """
    rows, features = z.shape
    one, unbiased = np.float32(1.0 / rows), np.float32(rows / max(rows - 1, 1))
    moving = np.float32(momentum)
    mean, rate, factor, summand = numbers[0], numbers[1], numbers[2], numbers[3]
    mean[:] = np.float32(0.0)
    rate[:] = np.float32(0.0)
    for n in range(rows):
        for f in range(features):
            mean[f] += z[n, f]
    for f in range(features):
        mean[f] *= one
    for n in range(rows):
        for f in range(features):
            away = z[n, f] - mean[f]
            rate[f] += away * away
    for f in range(features):
        variance = rate[f] * one
        rate[f] = np.float32(1.0 / np.sqrt(variance + eps))
        factor[f] = scale[f] * rate[f]
        summand[f] = shift[f] - mean[f] * factor[f]
        running[0, f] += moving * (mean[f] - running[0, f])
        running[1, f] += moving * (variance * unbiased - running[1, f])


@compiled()
def _unnormalise(z: Any, numbers: Any, gradient: Any, to_scale: Any, to_shift: Any) -> None:
    """The gradient ``(n, f)`` of normalised rows as that of the rows, in place; those of what is learnt."""
    rows, features = z.shape
    one = np.float32(1.0 / rows)
    mean, rate, factor = numbers[0], numbers[1], numbers[2]
    to_scale[:] = np.float32(0.0)
    to_shift[:] = np.float32(0.0)
    for n in range(rows):
        for f in range(features):
            to_scale[f] += gradient[n, f] * (z[n, f] - mean[f])
            to_shift[f] += gradient[n, f]
    for f in range(features):
        to_scale[f] *= rate[f]
    for n in range(rows):
        for f in range(features):
            standard = (z[n, f] - mean[f]) * rate[f]
            common = (to_shift[f] + standard * to_scale[f]) * one
            gradient[n, f] = factor[f] * (gradient[n, f] - common)


@compiled()
def _drop(values: Any, drawn: Any, limit: int, scale: float) -> None:
    """``scale`` times the values ``(c,)`` whose draws reach the limit, 0 the others, in place."""
    zero = np.float32(0.0)
    for k in range(len(values)):
        values[k] *= scale if drawn[k] >= limit else zero


@compiled()
def _cross_entropy(logits: Any, classes: Any, smoothing: float, gradient: Any) -> tuple[float, int]:
    """Sum of the losses of ``logits (n, c)``, and how many are right; the gradient of the mean loss."""
    rows, count = logits.shape
    zero, one = np.float32(0.0), np.float32(1.0 / rows)
    spread, kept = np.float32(smoothing / count), np.float32(1.0 - smoothing)
    loss, hits = 0.0, 0
    for n in range(rows):
        row, out, own = logits[n], gradient[n], int(classes[n])
        best = 0
        for c in range(1, count):
            if row[best] != row[best]:  # the first NaN is the largest
                break
            if not row[c] <= row[best]:
                best = c
        hits += best == own
        total, all_logits = zero, zero
        for c in range(count):
            out[c] = np.exp(row[c] - row[best])
            total += out[c]
            all_logits += row[c] - row[best]
        entropy = np.log(total)
        loss += kept * (entropy - (row[own] - row[best]))
        if smoothing > 0.0:
            loss += spread * (np.float32(count) * entropy - all_logits)
        for c in range(count):
            out[c] = (out[c] / total - (spread + (kept if c == own else zero))) * one
    return loss, hits


@compiled()
def _squared_error(outputs: Any, targets: Any, gradient: Any) -> float:
    """Sum of the squared errors of ``outputs (n, 1)``; the gradient of their mean."""
    rows = len(outputs)
    two, loss = np.float32(2.0 / rows), 0.0
    for n in range(rows):
        away = outputs[n, 0] - np.float32(targets[n])
        loss += away * away
        gradient[n, 0] = two * away
    return loss


@compiled()
def _gaussian_nll(outputs: Any, targets: Any, bounds: Any, gradient: Any) -> float:
    """Sum of the negative log-likelihoods of ``outputs (n, 2)``; the gradient of their mean."""
    rows = len(outputs)
    zero, half, one = np.float32(0.0), np.float32(0.5), np.float32(1.0 / rows)
    low, high = np.float32(bounds[0]), np.float32(bounds[1])
    loss = 0.0
    for n in range(rows):
        away, told = outputs[n, 0] - np.float32(targets[n]), outputs[n, 1]
        log_variance = min(max(told, low), high) if told == told else told  # a NaN stays
        weight = np.exp(-log_variance)
        loss += half * (log_variance + away * away * weight)
        gradient[n, 0] = away * weight * one
        gradient[n, 1] = half * (np.float32(1.0) - away * away * weight) * one
        if told < low or told > high:
            gradient[n, 1] = zero
    return loss


@compiled()
def _through(
    stages: Any,
    constants: Any,
    row: Any,
    running: Any,
    inputs: Any,
    targets: Any,
    loss_of: Any,
    words: Any,
    firsts: Any,
    limits: Any,
    scales: Any,
    space: Any,
    gradient: Any,
) -> tuple[float, int]:
    """One worker's outputs and gradients; the sum of its losses, and how many classes are right.

    Where there is no such class as a target says nothing is done, and -1 are right.
    """
    rows, zero = len(inputs), np.float32(0.0)
    count = len(stages)
    if loss_of[0] == CROSS_ENTROPY:
        for n in range(rows):
            if not 0 <= targets[n] < stages[count - 1, OUTPUTS]:
                return np.nan, -1
    x = inputs
    for s in range(count):
        place = stages[s]
        width, features = place[INPUTS], place[OUTPUTS]
        z = _block(space, place[Z], rows, features)
        np.dot(x, _block(row, place[WEIGHT], features, width).T, z)
        if place[BIAS] >= 0:
            bias = row[place[BIAS] : place[BIAS] + features]
            for n in range(rows):
                for f in range(features):
                    z[n, f] += bias[f]
        if place[OUT] < 0:
            x = z
            continue
        numbers = _block(space, place[NUMBERS], 4, features)
        factor, summand = numbers[2], numbers[3]
        if place[RUNNING] >= 0:
            scale = row[place[SCALE] : place[SCALE] + features]
            shift = row[place[SHIFT] : place[SHIFT] + features]
            moved = _block(running, place[RUNNING], 2, features)
            _normalise(z, constants[s, 0], constants[s, 1], scale, shift, moved, numbers)
        else:
            factor[:] = np.float32(1.0)
            summand[:] = zero
        out = _block(space, place[OUT], rows, features)
        for n in range(rows):
            for f in range(features):
                out[n, f] = z[n, f] * factor[f] + summand[f]
            if place[RELU]:
                for f in range(features):
                    out[n, f] = zero if out[n, f] < zero else out[n, f]  # a NaN stays
        drop = place[DROPOUT]
        if drop >= 0:
            _drop(out.reshape(-1), words[firsts[drop] :], limits[drop], scales[drop])
        x = out
    widest = 0
    for s in range(count):
        widest = max(widest, stages[s, OUTPUTS])
    half = len(space) - rows * widest
    here = half  # gradients take turns in the last two parts of the space
    g = _block(space, here, rows, stages[count - 1, OUTPUTS])
    hits = 0
    if loss_of[0] == CROSS_ENTROPY:
        loss, hits = _cross_entropy(x, targets, loss_of[1], g)
    elif loss_of[0] == MSE:
        loss = _squared_error(x, targets, g)
    else:
        loss = _gaussian_nll(x, targets, (loss_of[2], loss_of[3]), g)
    for s in range(count - 1, -1, -1):
        place = stages[s]
        width, features = place[INPUTS], place[OUTPUTS]
        if place[OUT] >= 0:
            z, numbers = _block(space, place[Z], rows, features), _block(space, place[NUMBERS], 4, features)
            factor, summand = numbers[2], numbers[3]
            drop = place[DROPOUT]
            if drop >= 0:
                _drop(g.reshape(-1), words[firsts[drop] :], limits[drop], scales[drop])
            if place[RELU]:
                for n in range(rows):
                    for f in range(features):
                        g[n, f] = zero if z[n, f] * factor[f] + summand[f] <= zero else g[n, f]
            if place[RUNNING] >= 0:
                to_scale = gradient[place[SCALE] : place[SCALE] + features]
                to_shift = gradient[place[SHIFT] : place[SHIFT] + features]
                _unnormalise(z, numbers, g, to_scale, to_shift)
        x = inputs
        if s > 0:
            before = stages[s - 1]
            x = _block(space, before[OUT] if before[OUT] >= 0 else before[Z], rows, width)
        np.dot(g.T, x, _block(gradient, place[WEIGHT], features, width))
        if place[BIAS] >= 0:
            bias = gradient[place[BIAS] : place[BIAS] + features]
            bias[:] = zero
            for n in range(rows):
                for f in range(features):
                    bias[f] += g[n, f]
        if s > 0:
            there = half - rows * widest if here == half else half
            back = _block(space, there, rows, width)
            np.dot(g, _block(row, place[WEIGHT], features, width), back)
            g, here = back, there
    return loss, hits


@compiled()
def train(
    stages: Any,
    constants: Any,
    rows: Any,
    running: Any,
    batch: Any,
    loss_of: Any,
    draws: Any,
    space: Any,
    gradients: Any,
    update: Any,
    kept: Any,
    found: Any,
) -> None:
    """A step of every worker.

    Args:
        stages: ``(s, 12)`` int64, as the names above say.
        constants: ``(s, 2)``: ε and momentum of the normalisations.
        rows: ``(w, d)`` parameters.
        running: ``(w, r)`` statistics of the normalisations.
        batch: inputs ``(w, n, i)`` and targets ``(w, n)``.
        loss_of: which loss, label smoothing, and bounds of log-variances.
        draws: words ``(w, k)`` int16, ``(c,)`` where each call's begin, its limits and scales ``(w, c)``.
        space: workspace.
        gradients: ``(w, d)``, or a row that is used again.
        update: which optimizer, rates ``(w,)``, decay ``(d,)`` and settings of ``adamw_row`` or ``sgd_row``.
        kept: steps made with this one, ``(w,)``, and two moments ``(w, d)``.
        found: sums of losses ``(w,)`` and hits ``(w,)`` int64, to be filled up to the first of -1 hits, where
            a target is no class.
    """
    inputs, targets = batch
    words, firsts, limits, scales = draws
    optimizer, rates, decay, settings = update
    steps, first, second = kept
    losses, hits = found
    for w in range(len(rows)):
        gradient = gradients[w % len(gradients)]
        losses[w], hits[w] = _through(
            stages,
            constants,
            rows[w],
            running[w],
            inputs[w],
            targets[w],
            loss_of,
            words[w],
            firsts,
            limits[w],
            scales[w],
            space,
            gradient,
        )
        if hits[w] < 0:
            return
        if optimizer == ADAMW:
            adamw_row(rows[w], gradient, first[w], second[w], steps[w], rates[w], decay, settings)
        elif optimizer == SGD:
            sgd_row(rows[w], gradient, first[w], rates[w], decay, settings)
