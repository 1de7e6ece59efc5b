"""Superposition of members: amplitudes are added, and squared to probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hqde.errors import PreconditionError
from hqde.metrics.checks import check_member_probs

LOG_TEMPERATURE_BOUNDS = (math.log(0.05), math.log(20.0))
PRIOR_SCALE = 0.5  # standard deviation of the log temperature before any row is seen
GRID = 11


def superpose(member_probs: Tensor, weights: Tensor, coherence: float) -> Tensor:
    """Superposition by Born's rule, with partial coherence.

    In plain mathematics: ``p ∝ (1 − g) Σ_i w_i p_i + g (Σ_i √(w_i p_i))²``, which is
    ``Σ_i w_i p_i + g Σ_{i≠j} √(w_i p_i w_j p_j)``: the linear pool, and g times the interference. g = 0 is
    the linear pool; g = 1 with equal weights is the barycentre of the members in the Hellinger distance,
    their power mean of exponent ½. Where members exclude each other nothing interferes, and it is the linear
    pool.

    Args:
        member_probs: ``(m, ..., c)`` probabilities.
        weights: ``(m,)`` at least 0, summing to 1.
        coherence: g, from 0 to 1.

    Returns:
        ``(..., c)`` probabilities. Members that agree are returned.

    Raises:
        PreconditionError: the coherence lies outside [0, 1].

    >>> two = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]), torch.tensor([0.5, 0.5])
    >>> superpose(*two, 0.0), superpose(*two, 1.0)
    (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000]]))
    >>> superpose(torch.tensor([[[1.0, 0.0]], [[0.36, 0.64]]]), torch.tensor([0.5, 0.5]), 1.0)
    tensor([[0.8000, 0.2000]])

    Source: Born, "Zur Quantenmechanik der Stoßvorgänge" (1926); Genest & Zidek, "Combining probability
    distributions" (1986), for pools as generalised means.
    """
    check_coherence(coherence)
    shares = weights.to(member_probs)
    linear = torch.tensordot(shares, member_probs, dims=1)
    if coherence == 0.0:
        return linear
    # √ has no slope at 0, and whoever differentiates through this needs one.
    roots = member_probs.clamp_min(torch.finfo(member_probs.dtype).tiny).sqrt()
    mixed = (1.0 - coherence) * linear + coherence * torch.tensordot(shares.sqrt(), roots, dims=1).square()
    return mixed / mixed.sum(dim=-1, keepdim=True)


def confidence_weights(confidence: Tensor) -> Tensor:
    """``softmax(confidence)``: weights ``(m,)`` float64 that sum to 1.

    >>> confidence_weights(torch.tensor([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    return torch.softmax(confidence.double(), dim=0)


def fit_coherence(member_probs: Tensor, targets: Tensor, weights: Tensor) -> float:
    """The coherence of least negative log-likelihood on held-out rows, each at the temperature that suits it.

    In plain mathematics: ``argmin_g min_T Σ_i −log softmax(log p_g(·|i) / T)[y_i] + (log T)² / (2 · ½²)``. A
    pool's shape also changes how sure it is; without T, g would be spent on that. A grid, then Brent's method
    around its best point; no randomness.

    Args:
        member_probs: ``(m, n, c)`` probabilities on rows that no member was trained on.
        targets: ``(n,)`` class ids.
        weights: ``(m,)`` as for `superpose`.

    Returns:
        g, from 0 to 1; 0 for a lone member.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    >>> rows = torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]]])
    >>> 0.0 <= fit_coherence(rows, torch.tensor([0]), torch.tensor([0.5, 0.5])) <= 1.0
    True
    """
    check_member_probs(member_probs, targets)
    if len(member_probs) == 1:
        return 0.0
    # Deferred: nobody who only loads and predicts should wait for scipy.
    from scipy.optimize import minimize_scalar

    probs, labels = member_probs.detach().double(), targets.long().unsqueeze(1)
    prior = 1.0 / (2.0 * PRIOR_SCALE**2 * len(targets))

    def cost(coherence: float) -> float:
        logs = superpose(probs, weights, coherence).clamp_min(torch.finfo(torch.float64).tiny).log()
        right = logs.gather(1, labels).squeeze(1)

        def at(log_temperature: float) -> float:
            beta = math.exp(-log_temperature)
            fit = (torch.logsumexp(beta * logs, dim=1) - beta * right).mean()
            return float(fit) + prior * log_temperature**2

        found = minimize_scalar(at, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-5})
        return float(found.fun)

    grid = [step / (GRID - 1) for step in range(GRID)]
    costs = [cost(coherence) for coherence in grid]
    best = min(range(GRID), key=costs.__getitem__)
    around = (grid[max(0, best - 1)], grid[min(GRID - 1, best + 1)])
    found = minimize_scalar(cost, bounds=around, method="bounded", options={"xatol": 1e-4})
    return float(found.x) if found.fun < costs[best] else grid[best]


def check_coherence(coherence: float) -> None:
    """Refuse a coherence that is not between 0 and 1."""
    if not 0.0 <= coherence <= 1.0:
        raise PreconditionError(f"a coherence lies between 0 and 1, got {coherence}.")
