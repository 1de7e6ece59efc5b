"""Superposition and entanglement as combiners; their mathematics is in `hqde.quantum`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from hqde.ensemble.pooling import (
    SharePooling,
    softmax_weights,
    weighted_mean,
)
from hqde.metrics import nll
from hqde.metrics.checks import check_member_probs
from hqde.quantum import confidence_weights, fit_coherence, minimum_variance_weights, shrinkage, superpose
from hqde.quantum.superposition import check_coherence


@dataclass(frozen=True)
class SuperpositionCombiner(SharePooling):
    """Superposition: the members' amplitudes ``√(w_m p_m)`` are added and squared (Born's rule).

    In plain mathematics: ``p ∝ (1 − g) Σ_m w_m p_m + g (Σ_m √(w_m p_m))²``, with weights ``w =
    softmax(confidence)`` and the coherence g. g = 0 is the linear pool; g = 1 with equal weights the
    Hellinger barycentre. Fitted, a member's confidence is minus its NLL on held-out rows, so that it weighs
    as much as the geometric mean of the probabilities it gave to what was right, and g is the one of least
    NLL. Before, confidence is the efficiency score. There is no noise: the same members give the same
    prediction.

    Args:
        coherence: g, from 0 to 1.
        shares: w, one per member; empty before fitting.

    Raises:
        PreconditionError: a value out of range.

    >>> probs = torch.tensor([[[1.0, 0.0]], [[0.36, 0.64]]])
    >>> SuperpositionCombiner(coherence=1.0).combine(probs, torch.ones(2))
    tensor([[0.8000, 0.2000]])

    Source: see `hqde.quantum.superpose`.
    """

    coherence: float = 1.0
    shares: tuple[float, ...] = ()
    name: ClassVar[str] = "superposition"
    pools_normals: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_coherence(self.coherence)
        super().__post_init__()

    def fit(self, member_predictions: Tensor, targets: Tensor) -> Self:
        """With the members' confidence and the coherence from held-out rows."""
        check_member_probs(member_predictions, targets)
        confidence = torch.stack([-nll(probs, targets) for probs in member_predictions])
        weights = confidence_weights(confidence)
        coherence = fit_coherence(member_predictions, targets, weights)
        return replace(self, coherence=coherence, shares=tuple(weights.tolist()))

    def unfitted_weights(self, scores: Tensor) -> Tensor:
        """The softmax of the scores."""
        return softmax_weights(scores)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """`hqde.quantum.superpose`."""
        return superpose(member_probs, weights, self.coherence)


@dataclass(frozen=True)
class EntanglementCombiner(SharePooling):
    """Entanglement: members are weighted by how their errors correlate.

    In plain mathematics: the mean ``Σ_m w_m p_m`` with the weights of least Brier score, ``argmin wᵀ E w``
    over ``w ≥ 0, Σ w = 1``, where ``E_ij`` is the mean product of the errors of members i and j on held-out
    rows, shrunk towards members that are all alike by as much as so few rows are to be mistrusted. For
    regression E is that of the means, and the weights mix the members' normal distributions. Before fitting,
    weights are equal.

    Args:
        shares: w, one per member; empty before fitting.

    >>> probs = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    >>> EntanglementCombiner((0.5, 0.5)).combine(probs, torch.ones(2))
    tensor([[0.7500, 0.2500]])

    Source: Bates & Granger, "The combination of forecasts" (1969); see `hqde.quantum.shrinkage`.
    """

    shares: tuple[float, ...] = ()
    name: ClassVar[str] = "entanglement"
    pools_normals: ClassVar[bool] = True

    def fit(self, member_predictions: Tensor, targets: Tensor) -> Self:
        """With the minimum-variance weights of held-out rows."""
        gram, shrink = shrinkage(member_predictions, targets)
        return replace(self, shares=tuple(minimum_variance_weights(gram, shrink=shrink).tolist()))

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean."""
        return weighted_mean(member_probs, weights)
