"""Stacking: a weighted geometric mean whose weights are fitted on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from hqde.ensemble.cross_validation import NUM_FOLDS, folds, simplest
from hqde.ensemble.pooling import SharePooling, weighted_geometric_mean
from hqde.metrics.checks import check_member_probs

# How far exponents may stray from each other, in units of 1/m and from least to most; 0 keeps them equal.
SPREADS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
TOTAL_SPREAD = 1.0  # standard deviation of the exponents' sum around 1, before any row is seen
MOST_STEPS = 2000
MOST_NUMBERS = 2**27  # in double precision; more are kept in single


@dataclass(frozen=True)
class StackingCombiner(SharePooling):
    """The log-linear pool with fitted exponents: ``p(c) ∝ exp(Σ_m a_m log p_m(c))``, ``a_m ≥ 0``.

    The exponents are those of `fit_exponents`. Their sum is what a temperature does, so it is kept as one:
    ``a_m = w_m / T``. The shares w sum to 1 and stand here, so that members that agree are returned; T is the
    ensemble's temperature, which ``Ensemble.fit_combiner`` sets. The NLL of a pool with shares that sum to 1
    is never above the shares' mean of the members' NLL (Hölder). Before it is fitted, shares are equal: the
    logarithmic pool.

    Args:
        shares: w, one per member; empty before fitting.

    >>> probs = torch.tensor([[[0.8, 0.2]], [[0.5, 0.5]]])
    >>> StackingCombiner((1.0, 0.0)).combine(probs, torch.ones(2))
    tensor([[0.8000, 0.2000]])

    Source: Wolpert, "Stacked generalization" (1992); Genest & Zidek, "Combining probability distributions: a
    critique and an annotated bibliography" (1986), for the pool.
    """

    shares: tuple[float, ...] = ()
    name: ClassVar[str] = "stacking"
    pools_normals: ClassVar[bool] = False

    def fit(self, member_predictions: Tensor, targets: Tensor) -> Self:
        """With the shares of `fit_exponents`, at the spread of `choose_spread`."""
        spread = choose_spread(member_predictions, targets)
        exponents = fit_exponents(member_predictions, targets, spread=spread)
        return replace(self, shares=tuple((exponents / exponents.sum()).tolist()))

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted geometric mean, normalised."""
        return weighted_geometric_mean(member_probs, weights)


def fit_exponents(member_probs: Tensor, targets: Tensor, *, spread: float = 2.0) -> Tensor:
    """The most probable exponents of a log-linear pool, given held-out rows and a prior around ``1/m`` each.

    With ``z_imc = log p_m(c|i)``, the exponents' mean ``ā`` and the spread s it minimises, over ``a ≥ 0``,

        Σ_i [log Σ_c exp(Σ_m a_m z_imc) − Σ_m a_m z_imy] + Σ_m (m (a_m − ā))² / (2 s²) + (Σ_m a_m − 1)² / 2

    The first part is the NLL, the second a ridge that draws the exponents to each other, the third one that
    draws their sum to 1, as strongly as a row or two. All three are convex, so there is one minimum; members
    that predict alike get equal exponents. Solved by L-BFGS-B from ``1/m``; no randomness.

    Args:
        member_probs: (m, n, c) probabilities on rows that no member was trained on, n at least 1.
        targets: (n,) class ids.
        spread: s, at least 0; 0 keeps the exponents equal, which leaves one number: a temperature.

    Returns:
        (m,) float64, at least 0, not all 0.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    >>> right, unsure = [[0.9, 0.1]], [[0.5, 0.5]]
    >>> members = torch.tensor([right, unsure]).expand(-1, 200, -1)
    >>> a, b = fit_exponents(members, torch.zeros(200, dtype=torch.long)).tolist()
    >>> a > b
    True
    """
    check_member_probs(member_probs, targets)
    return _solve(_log_odds(member_probs, targets), spread, None)


def choose_spread(member_probs: Tensor, targets: Tensor) -> float:
    """How different the exponents may be, by cross-validation: 0 for members that are worth the same.

    The least spread that is `simplest` among `cross_validated_losses`: rows have to speak for it that members
    differ.

    Args:
        member_probs, targets: as for `fit_exponents`; with fewer than 10 rows the spread is 0.

    >>> choose_spread(torch.full((2, 4, 2), 0.5), torch.zeros(4, dtype=torch.long))
    0.0
    """
    check_member_probs(member_probs, targets)
    if len(member_probs) == 1 or len(targets) < 2 * NUM_FOLDS:
        return 0.0
    return SPREADS[simplest(cross_validated_losses(member_probs, targets))]


def cross_validated_losses(member_probs: Tensor, targets: Tensor) -> Tensor:
    """NLL of each row for each of ``SPREADS``, (6, n) float64, with exponents fitted to other folds.

    Args:
        member_probs, targets: as for `fit_exponents`, with at least 5 rows.
    """
    odds = _log_odds(member_probs, targets)
    losses = torch.zeros(len(SPREADS), len(targets), dtype=torch.float64)
    for kept, left in folds(len(targets)):
        exponents: Tensor | None = None
        for place, spread in enumerate(SPREADS):
            exponents = _solve(odds[:, kept], spread, exponents)
            pooled = torch.tensordot(exponents.to(odds), odds[:, left], dims=1)
            losses[place, left] = torch.logsumexp(pooled, dim=1).double().cpu()
    return losses


def _log_odds(member_probs: Tensor, targets: Tensor) -> Tensor:
    """Log odds of each class against the target, (m, n, c)."""
    dtype = torch.float64 if member_probs.numel() <= MOST_NUMBERS else torch.float32
    logs = member_probs.detach().clamp_min(torch.finfo(member_probs.dtype).tiny).to(dtype).log()
    return logs - logs.gather(2, targets.long()[None, :, None].expand(len(logs), -1, 1))


def _solve(odds: Tensor, spread: float, start: Tensor | None) -> Tensor:
    """The minimum of `fit_exponents`, from log odds (m, n, c)."""
    # Deferred: nobody who only loads and predicts should wait for scipy.
    from scipy.optimize import minimize

    num_members, num_rows, num_classes = odds.shape
    tied = spread == 0.0
    rows = odds.mean(dim=0).flatten()[None] if tied else odds.flatten(1)
    count = len(rows)

    def objective(scaled: Any) -> tuple[float, Any]:
        exponents = torch.as_tensor(scaled, dtype=rows.dtype, device=rows.device) / count
        pooled = (exponents @ rows).view(num_rows, num_classes)
        total = exponents.sum()
        apart = torch.zeros_like(exponents) if tied else (exponents - total / count) * count / spread
        off = (total - 1.0) / TOTAL_SPREAD
        prior = (apart.square().sum() + off.square()) / (2.0 * num_rows)
        slope = rows @ torch.softmax(pooled, dim=1).flatten() / num_rows
        if not tied:
            slope = slope + apart * count / spread / num_rows
        slope = slope + off / TOTAL_SPREAD / num_rows
        value = torch.logsumexp(pooled, dim=1).mean() + prior
        return float(value), (slope / count).double().cpu().numpy()

    found = minimize(
        objective,
        [1.0] * count if start is None or tied else (start * count).tolist(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * count,
        options={"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "ftol": 1e-15, "gtol": 1e-9},
    )
    exponents = torch.from_numpy(found.x).expand(num_members) / num_members
    if float(exponents.sum()) <= 0.0:  # members that are worse than saying nothing
        return torch.full((num_members,), 1e-3 / num_members, dtype=torch.float64)
    return exponents
