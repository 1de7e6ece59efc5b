"""Noise that means something: of a temperature, that cancels over a group, or that hides who took part.

Pure functions; nothing here knows of workers or runs. Opacus is imported where it is first needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hqde.errors import MissingExtraError, PreconditionError

# The orders α at which Rényi divergences are kept: those of Opacus, and more for very little privacy spent.
RDP_ORDERS: tuple[float, ...] = (
    *(1 + x / 10.0 for x in range(1, 100)),
    *range(12, 64),
    *(80, 128, 256, 512, 1024),
)


def decohered(temperature: float, rate: float, progress: float) -> float:
    """Decoherence: a temperature that fades, ``T · exp(−rate · progress)``.

    Args:
        temperature: T when the run begins, from 0 on.
        rate: from 0 (it stays) on.
        progress: fraction of the run that is done.

    Example:
        >>> decohered(2.0, 0.0, 0.7), round(decohered(1.0, 1.0, 1.0), 3)
        (2.0, 0.368)
    """
    return temperature * math.exp(-rate * progress)


def langevin_step(
    parameters: Tensor,
    gradient: Tensor,
    learning_rate: float,
    *,
    temperature: float = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """One step of Langevin dynamics, ``θ − η ∇U(θ) + √(2 η T) ξ`` with ξ standard normal.

    With small η its θ visit the density ``∝ exp(−U(θ) / T)``: at T = 1, with U the negative log-posterior,
    they are draws from the posterior; at T = 0 it is gradient descent.

    Args:
        parameters: θ, of any shape.
        gradient: ∇U at θ, or an unbiased estimate of it, of the same shape.
        learning_rate: η, above 0.
        temperature: T, from 0 on.
        generator: of ξ.

    Returns:
        The next θ, a new tensor.

    Example:
        >>> draws, ones = torch.Generator(), torch.ones(2)
        >>> langevin_step(ones, ones, 0.5, temperature=0.0, generator=draws).tolist()
        [0.5, 0.5]

    Source: Welling and Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics".
    """
    noise = torch.randn(
        parameters.shape, generator=generator, dtype=parameters.dtype, device=parameters.device
    )
    return parameters - learning_rate * gradient + math.sqrt(2.0 * learning_rate * temperature) * noise


def langevin_gradient_std(
    learning_rate: float, temperature: float, num_rows: int, *, momentum: float = 0.0
) -> float:
    """Standard deviation of the noise which, added to the gradient of a mean loss, makes SGD a sampler.

    SGD descends a mean over N rows, U / N. With noise of this size on its gradient and the step ``v ← μ v +
    g, θ ← θ − η v``, each step puts ``√(2 (1 − μ) η T / N)`` into η v: Langevin dynamics of U at temperature
    T, with friction 1 − μ where there is momentum.

    Args:
        learning_rate: η, above 0.
        temperature: T, from 0 on.
        num_rows: N, at least 1.
        momentum: μ, in [0, 1).

    Returns:
        ``√(2 (1 − μ) T / (N η))``.

    Example:
        >>> langevin_gradient_std(0.5, 1.0, 100)
        0.2

    Source: Welling and Teh 2011; with momentum, Zhang et al. 2020, "Cyclical stochastic gradient MCMC for
    Bayesian deep learning", equation 4.
    """
    return math.sqrt(2.0 * (1.0 - momentum) * temperature / (num_rows * learning_rate))


def entangled_coefficients(shares: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """How much of two shared draws each of n workers gets, so that all together they cancel.

    With ξ₁, ξ₂ standard normal and shared, worker i is perturbed by

        e_i = (cos(2π i / n) ξ₁ + sin(2π i / n) ξ₂) / (n s_i),

    so ``Σ_i s_i e_i = 0``: the mean weighted by shares does not move. With equal shares each e_i by itself is
    standard normal, and e_i and e_j have the correlation ``cos(2π (i − j) / n)``: two workers go opposite
    ways.

    Args:
        shares: s_i, above 0, with the sum 1; of at least two workers.

    Returns:
        For each worker the factors of ξ₁ and ξ₂.

    Raises:
        PreconditionError: fewer than two shares, or one that is not above 0.

    Example:
        >>> [(round(a, 6), round(b, 6)) for a, b in entangled_coefficients([0.5, 0.5])]
        [(1.0, 0.0), (-1.0, 0.0)]
    """
    count = len(shares)
    if count < 2 or not all(share > 0.0 for share in shares):
        raise PreconditionError(
            f"perturbations that cancel need at least 2 workers with shares above 0, got {list(shares)}"
        )
    angles = [2.0 * math.pi * i / count for i in range(count)]
    return tuple(
        (math.cos(angle) / (count * share), math.sin(angle) / (count * share))
        for angle, share in zip(angles, shares, strict=True)
    )


def gaussian_rdp(order: float, noise_multiplier: float, *, rounds: int = 1) -> float:
    """Rényi divergence of the Gaussian mechanism, composed: ``rounds · α / (2 σ²)``; everybody takes part.

    Args:
        order: α, above 1.
        noise_multiplier: σ, the noise's standard deviation over the clipping norm, above 0.
        rounds: how often it is used.

    Example:
        >>> gaussian_rdp(2.0, 2.0, rounds=10)
        2.5

    Source: Mironov 2017, "Rényi differential privacy", Corollary 3 and Proposition 1.
    """
    return rounds * order / (2.0 * noise_multiplier**2)


def epsilon_from_rdp(orders: Sequence[float], rdp: Sequence[float], delta: float) -> float:
    """The ε that Rényi divergences promise at δ: the least over α > 1 of

        RDP(α) − (log δ + log α) / (α − 1) + log((α − 1) / α),  and at least 0.

    Args:
        orders: α, above 1.
        rdp: the divergence at each.
        delta: δ, in (0, 1).

    Example:
        >>> round(epsilon_from_rdp(RDP_ORDERS, [gaussian_rdp(a, 4.0) for a in RDP_ORDERS], 1e-5), 3)
        1.013

    Source: Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy", Proposition 12.
    """
    found = [
        value - (math.log(delta) + math.log(order)) / (order - 1) + math.log((order - 1) / order)
        for order, value in zip(orders, rdp, strict=True)
    ]
    return max(0.0, min(found))


def privacy_spent(*, sample_rate: float, noise_multiplier: float, rounds: int, delta: float) -> float:
    """ε after so many uses of the sampled Gaussian mechanism, by Opacus' accountant.

    Args:
        sample_rate: q, in (0, 1]: everybody takes part in a round with this probability, independently.
        noise_multiplier: σ, the noise's standard deviation over the clipping norm, above 0.
        rounds: how often; 0 spends nothing.
        delta: δ, in (0, 1).

    Returns:
        ε; infinite without noise.

    Raises:
        MissingExtraError: Opacus is not installed.

    Source: Mironov, Talwar, Zhang 2019, "Rényi differential privacy of the sampled Gaussian mechanism";
    Opacus (Apache-2.0), ``opacus.accountants``.
    """
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0.0:
        return math.inf
    each = _rdp_of_a_round(sample_rate, noise_multiplier)
    with warnings.catch_warnings():
        # It says where the best order is the first or the last; what it returns is a bound all the same.
        warnings.simplefilter("ignore", UserWarning)
        epsilon, _ = _opacus().get_privacy_spent(
            orders=list(RDP_ORDERS), rdp=[rounds * value for value in each], delta=delta
        )
    return float(epsilon)


@lru_cache(maxsize=32)
def _rdp_of_a_round(sample_rate: float, noise_multiplier: float) -> tuple[float, ...]:
    found = _opacus().compute_rdp(
        q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(RDP_ORDERS)
    )
    return tuple(float(value) for value in found)


def _opacus() -> Any:
    try:
        from opacus.accountants.analysis import rdp
    except ImportError as error:
        raise MissingExtraError("accounting for privacy", extra="privacy") from error
    return rdp
