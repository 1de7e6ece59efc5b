"""Temperature: one number, fitted on held-out rows, that makes probabilities as sure as they are right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hqde.errors import PreconditionError
from hqde.metrics import nll

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
PRIOR_SCALE = 0.5  # standard deviation of log T before any row is seen


def apply_temperature(probs: Tensor, temperature: float) -> Tensor:
    """``softmax(log p / T)``: flatter for T > 1, sharper for T < 1, unchanged (bit for bit) for T = 1.

    The order of the classes stays. Probabilities are kept at or above the smallest normal number of their
    dtype before the logarithm, so that 0 and 1 give no NaN.

    Args:
        probs: (n, c), rows sum to 1.
        temperature: above 0.

    Returns:
        (n, c) probabilities.

    Raises:
        PreconditionError: the temperature is not a finite number above 0.

    >>> apply_temperature(torch.tensor([[0.8, 0.2]]), 2.0)
    tensor([[0.6667, 0.3333]])
    """
    check_temperature(temperature)
    if temperature == 1.0:
        return probs
    return torch.softmax(log_of(probs) / temperature, dim=-1)


def fit_temperature(probs: Tensor, targets: Tensor) -> float:
    """The most probable temperature, given held-out rows and a prior that expects none to be needed.

    With ``β = 1/T`` and ``z = log p`` it minimises the mean NLL plus the prior ``log T ~ N(0, ½²)``:

        Σ_i [log Σ_c exp(β z_ic) − β z_iy] / n  +  (log β)² / (2 · ½² · n)

    The prior weighs as much as a row or two: it decides where the rows cannot (all right, all uniform, a
    handful), where maximum likelihood would run to a bound, and is nothing against thousands. As it is 0 at
    T = 1, the NLL on these rows never rises. The search (Brent's method) is bounded and has no randomness:
    the same input always gives the same number.

    Args:
        probs: (n, c) of the combined ensemble, n at least 1.
        targets: (n,) int64 class ids.

    Returns:
        The temperature, in [0.05, 20].

    Raises:
        PreconditionError: no rows, or shapes or labels that do not fit.
        NonFiniteError: a probability is NaN or infinite.

    >>> probs = torch.tensor([[0.9, 0.1]]).repeat(10_000, 1)
    >>> targets = torch.tensor([0] * 7000 + [1] * 3000)  # right in 7 of 10: T = log 9 / log(7/3)
    >>> round(fit_temperature(probs, targets), 1)
    2.6

    Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks" (2017), for the likelihood.
    """
    unchanged = nll(probs, targets)  # refuses what does not fit
    # Deferred: nobody who only loads and predicts should wait for scipy.
    from scipy.optimize import minimize_scalar

    logs = log_of(probs.detach().cpu()).to(torch.float64)
    right = logs.gather(1, targets.cpu().unsqueeze(1)).squeeze(1)
    weight = 1.0 / (2.0 * PRIOR_SCALE**2 * len(logs))

    def objective(log_beta: float) -> float:
        beta = math.exp(log_beta)
        fit = float((torch.logsumexp(beta * logs, dim=1) - beta * right).mean())
        return fit + weight * log_beta**2

    bounds = (-math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE))
    found = minimize_scalar(
        objective, bounds=bounds, method="bounded", options={"xatol": 1e-9, "maxiter": 200}
    )
    temperature = math.exp(-min((0.0, float(found.x)), key=objective))
    # Judged by the numbers that prediction will give out, rounding included.
    return temperature if nll(apply_temperature(probs, temperature), targets) < unchanged else 1.0


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a finite number above 0."""
    if not 0.0 < temperature < float("inf"):
        raise PreconditionError(f"a temperature is finite and above 0, got {temperature}.")


def log_of(probs: Tensor) -> Tensor:
    """Logarithms of probabilities, these kept at or above the smallest normal number of their dtype."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
