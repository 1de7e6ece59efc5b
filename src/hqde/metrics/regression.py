"""How good predicted numbers are, with and without a stated spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hqde.errors import NonFiniteError, PreconditionError
from hqde.metrics.checks import check_vectors


def rmse(predictions: Tensor, targets: Tensor) -> Tensor:
    """Root of the mean squared error.

    Args:
        predictions: ``(n,)``.
        targets: ``(n,)``, in the same unit.

    Returns:
        A float64 scalar in the unit of the targets.

    Raises:
        PreconditionError: the shapes differ, or there are no rows.
        NonFiniteError: a number is NaN or infinite.

    >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
    1.4142
    """
    check_vectors(predictions=predictions, targets=targets)
    return (predictions.detach().double() - targets.double()).square().mean().sqrt()


def gaussian_nll(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood under normal predictions: the mean of ``½ log(2πσ²) + (y - μ)² / 2σ²``.

    Args:
        mean: ``(n,)`` predicted means ``μ``.
        variance: ``(n,)`` predicted variances ``σ²``, above 0.
        targets: ``(n,)`` observed ``y``.

    Returns:
        A float64 scalar in nats; a density's, so it may be negative and depends on the targets' unit.

    Raises:
        PreconditionError: the shapes differ, there are no rows, or a variance is not above 0.
        NonFiniteError: a number is NaN or infinite, or a target is too far off for its variance.

    >>> gaussian_nll(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([1.0])).item()  # (log 2π + 1) / 2
    1.4189
    """
    check_vectors(mean=mean, variance=variance, targets=targets)
    spread = variance.detach().double()
    if spread.min() <= 0.0:
        raise PreconditionError(
            f"gaussian_nll needs variances above 0, but the smallest is {spread.min().item():.6g}: "
            "a point prediction has no density; use crps_gaussian or rmse"
        )
    standardised = (targets.double() - mean.detach().double()) / spread.sqrt()
    result = 0.5 * ((2.0 * math.pi * spread).log() + standardised.square()).mean()
    if not result.isfinite():
        raise NonFiniteError(
            f"gaussian_nll overflows: a target is {standardised.abs().max().item():.3g} standard deviations "
            "off; floor the variances"
        )
    return result


def crps_gaussian(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Continuous ranked probability score of normal predictions, averaged over rows.

    ``σ [z (2Φ(z) - 1) + 2φ(z) - 1/√π]`` with ``z = (y - μ) / σ``: the integral over ``x`` of
    ``(F(x) - [x >= y])²``. With variance 0 it is the absolute error ``|y - μ|``.

    Args:
        mean: ``(n,)`` predicted means ``μ``.
        variance: ``(n,)`` predicted variances ``σ²``, at least 0.
        targets: ``(n,)`` observed ``y``.

    Returns:
        A float64 scalar in the unit of the targets, at least 0.

    Raises:
        PreconditionError: the shapes differ, there are no rows, or a variance is negative.
        NonFiniteError: a number is NaN or infinite.

    Source: Gneiting & Raftery, "Strictly proper scoring rules, prediction, and estimation" (2007), section
    4.2, with the sign turned so that less is better.

    >>> crps_gaussian(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.0])).item()  # (√2 - 1) / √π
    0.2337
    """
    check_vectors(mean=mean, variance=variance, targets=targets)
    spread = variance.detach().double()
    if spread.min() < 0.0:
        raise PreconditionError(f"crps_gaussian needs variances of at least 0, got {spread.min().item():.6g}")
    sigma = spread.sqrt()
    error = targets.double() - mean.detach().double()
    standardised = error / torch.where(sigma > 0.0, sigma, 1.0)
    density = torch.exp(-0.5 * standardised.square()) / math.sqrt(2.0 * math.pi)
    spread_part = sigma * (2.0 * density - 1.0 / math.sqrt(math.pi))
    scores = error * torch.erf(standardised / math.sqrt(2.0)) + spread_part
    return torch.where(sigma > 0.0, scores, error.abs()).clamp(min=0.0).mean()
