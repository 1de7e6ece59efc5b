"""How much an error in each block of 128 coordinates matters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hqde.compression.header import refuse_nonfinite
from hqde.compression.packing import BLOCK
from hqde.errors import ConfigError, PreconditionError

Importance = Literal["variance", "magnitude", "fisher"]
IMPORTANCES = ("variance", "magnitude", "fisher")
WEIGHT_SHARE, GRADIENT_SHARE = 0.7, 0.3  # the seed's mixture
CHUNK = 2048  # blocks at a time: 1 MiB per intermediate result, which caches hold and calls are few


def magnitude_score(
    weights: Tensor, gradient: Tensor | None = None, *, over: Literal["rms", "max"] = "rms"
) -> Tensor:
    """The seed's importance per element: 0.7 |w| + 0.3 |g|, each term in a unit of its own.

    Args:
        weights: any shape, floating.
        gradient: of the same shape; without it only the weights count, fully.
        over: what each term is divided by: its root mean square, or its largest value, which puts the score
            into [0, 1] and is what the seed's worked example does. A term that is all zeros stays zero.

    Returns:
        float32 of that shape, >= 0.

    Raises:
        PreconditionError: shapes that differ.

    Example:
        >>> weights = torch.tensor([0.001, 0.5, 2.0, 0.003, 1.5])
        >>> magnitude_score(weights, torch.tensor([0.1, 0.01, 0.2, 0.05, 0.3]), over="max")
        tensor([0.1003, 0.1850, 0.9000, 0.0510, 0.8250])
    """
    own = _in_own_unit(weights, over)
    if gradient is None:
        return own
    if gradient.shape != weights.shape:
        raise PreconditionError(
            f"a gradient of {tuple(gradient.shape)} does not belong to weights of {tuple(weights.shape)}"
        )
    return own.mul_(WEIGHT_SHARE).add_(_in_own_unit(gradient, over), alpha=GRADIENT_SHARE)


def block_spread(kind: Importance, values: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Per block, what its squared error is weighed by, times its mean square: what bits are spent on.

    With a quantiser whose error is D(b) times a block's mean square, ``spread · D(b)`` is what the block
    adds to the loss at b bits.

    Args:
        kind: "variance": the mean square itself, so that the squared error is least. "magnitude": the mean
            square of ``magnitude_score``. "fisher": the mean square times (F / mean(F) + 1), where F is the
            block's mean squared gradient; the 1 keeps blocks alive that the gradient happens not to see.
        values: ``(n,)`` floating, finite.
        gradient: ``(n,)``; "fisher" needs it, "magnitude" uses it, "variance" does not look at it.

    Returns:
        ``(ceil(n / 128),)`` float32, >= 0, in a unit of its own.

    Raises:
        ConfigError: an unknown kind, or "fisher" without a gradient.
        PreconditionError: a gradient of another length.
        NonFiniteError: values or gradients that are NaN or infinite.

    Example:
        >>> values = torch.cat([torch.ones(128), torch.full((128,), 2.0)])
        >>> block_spread("variance", values)
        tensor([0.2500, 1.0000])
        >>> block_spread("fisher", values, torch.cat([torch.ones(128), torch.zeros(128)]))
        tensor([0.7500, 1.0000])

    Source: the product of squared gradient and squared weight is Radio's (Young 2025), the damping ours:
    undamped it lost to the variance.
    """
    check_importance(kind)
    if gradient is not None and gradient.shape != values.shape:
        raise PreconditionError(f"a gradient of {tuple(gradient.shape)} for values of {tuple(values.shape)}")
    if kind == "magnitude":
        return _mean_squares(magnitude_score(values, gradient))
    spread = _mean_squares(values)
    if kind == "variance":
        return spread
    if gradient is None:
        raise ConfigError("importance 'fisher' needs gradient=…; without one use importance='variance'")
    fisher = _mean_squares(gradient)
    return spread * (fisher / fisher.mean().clamp(min=1e-30) + 1.0)


def check_importance(kind: str) -> None:
    """Refuse a name that is none of ``IMPORTANCES`` (ConfigError)."""
    if kind not in IMPORTANCES:
        raise ConfigError(f"importance is one of {', '.join(IMPORTANCES)}, got '{kind}'")


def _largest(values: Tensor) -> Tensor:
    if not values.numel():
        return values.new_ones(())
    low, high = torch.aminmax(values)
    largest = torch.maximum(-low, high)
    if not bool(torch.isfinite(largest.float())):
        refuse_nonfinite(values)
    return largest


def _in_own_unit(values: Tensor, over: Literal["rms", "max"]) -> Tensor:
    largest = _largest(values)
    if not bool(largest > 0):
        return torch.zeros_like(values, dtype=torch.float32)
    scaled = (values.abs() / largest).float()
    if over == "rms":
        scaled /= torch.linalg.vector_norm(scaled) / scaled.numel() ** 0.5
    return scaled


def _mean_squares(values: Tensor) -> Tensor:
    """Mean square per block, in units of the largest square; the last block may be short."""
    unit = _largest(values)
    unit = torch.where(unit > 0, unit, 1.0)
    full = len(values) // BLOCK
    rows = values[: full * BLOCK].view(-1, BLOCK)
    parts = [
        torch.linalg.vector_norm((chunk / unit).float(), dim=1).square_().div_(BLOCK)
        for chunk in rows.split(CHUNK)
    ]
    if len(values) % BLOCK:
        parts.append((values[full * BLOCK :] / unit).float().square().mean().reshape(1))
    return torch.cat(parts) if parts else values.new_empty(0, dtype=torch.float32)
