"""Votes: each member names its most probable class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from hqde.ensemble.pooling import (
    Pooling,
    SharePooling,
    shares_of,
    softmax_weights,
    weighted_mean,
)
from hqde.metrics.checks import check_member_probs


@dataclass(frozen=True)
class PluralityCombiner(Pooling):
    """The share of members whose most probable class it is: ``p(c) = #{m: argmax p_m = c} / m``.

    Of equally probable classes the first gets the vote. How sure a member is plays no part, and a class
    without votes has probability 0, which costs dearly in NLL: for decisions rather than probabilities.

    >>> PluralityCombiner().combine(torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]], [[0.0, 1.0]]]), torch.ones(3))
    tensor([[0.6667, 0.3333]])
    """

    name: ClassVar[str] = "plurality"
    pools_normals: ClassVar[bool] = False

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weight of each class's votes."""
        return weighted_mean(_votes(member_probs), weights)


@dataclass(frozen=True)
class WeightedVoteCombiner(SharePooling):
    """Votes weighted by how much better than guessing a member is: ``p(c) = Σ_{m: argmax p_m = c} w_m``.

    Fitted, ``w_m ∝ max(0, log[a_m (C − 1) / (1 − a_m)])`` for a member that is right in a share ``a_m`` of
    the held-out rows, over C classes: the best weights if members err independently. Before, the softmax of
    the efficiency scores.

    Args:
        shares: w, one per member; empty before fitting.

    >>> probs = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]])
    >>> WeightedVoteCombiner((0.75, 0.25)).combine(probs, torch.ones(2))
    tensor([[0.7500, 0.2500]])

    Source: Shapley & Grofman, "Optimizing group judgmental accuracy in the presence of interdependencies"
    (1984); Hastie et al., "Multi-class AdaBoost" (2009), for C classes.
    """

    shares: tuple[float, ...] = ()
    name: ClassVar[str] = "weighted_vote"
    pools_normals: ClassVar[bool] = False

    def fit(self, member_predictions: Tensor, targets: Tensor) -> Self:
        """With shares from the members' accuracies, counted with half a row more on either side."""
        check_member_probs(member_predictions, targets)
        right = (member_predictions.argmax(dim=2) == targets).double().sum(dim=1)
        odds = (right + 0.5) / (len(targets) - right + 0.5) * (member_predictions.shape[2] - 1)
        return replace(self, shares=shares_of(odds.log().clamp_min(0.0).tolist(), range(len(odds))))

    def unfitted_weights(self, scores: Tensor) -> Tensor:
        """The softmax of the scores."""
        return softmax_weights(scores)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weight of each class's votes."""
        return weighted_mean(_votes(member_probs), weights)


def _votes(member_probs: Tensor) -> Tensor:
    """One-hot most probable classes, (m, n, c)."""
    votes = torch.zeros_like(member_probs)
    return votes.scatter(-1, member_probs.argmax(dim=-1, keepdim=True), 1.0)
