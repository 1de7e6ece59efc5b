"""How unsure an ensemble is of each prediction, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hqde.metrics.checks import check_member_probs, row_chunks


class Uncertainty(NamedTuple):
    """Entropies of each row in nats, ``(n,)`` float64: ``total = aleatoric + epistemic``.

    Attributes:
        total: entropy of the members' mean prediction.
        aleatoric: mean entropy of the members' predictions: doubt that every member shares.
        epistemic: the difference, at least 0: doubt because the members contradict each other.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def uncertainty(member_probs: Tensor) -> Uncertainty:
    """Split each row's predictive entropy into what members share and what they contradict each other in.

    ``H(mean_i p_i) = mean_i H(p_i) + mean_i KL(p_i || mean)``; the last term is the mutual information of the
    class and the member.

    Args:
        member_probs: ``(m, n, c)`` probabilities.

    Returns:
        Total, aleatoric and epistemic uncertainty, ``(n,)`` each; total is at most ``log c``, epistemic at
        most ``log m``.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning" (2018).

    >>> sure_but_opposed = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> [round(part.item(), 4) for part in uncertainty(sure_but_opposed)]
    [0.6931, 0.0, 0.6931]
    """
    check_member_probs(member_probs)
    totals, aleatorics = [], []
    for chunk in row_chunks(member_probs):
        probs = chunk.clamp(0.0, 1.0)
        totals.append(torch.special.entr(probs.mean(dim=0)).sum(dim=1))
        aleatorics.append(torch.special.entr(probs).sum(dim=2).mean(dim=0))
    total, aleatoric = torch.cat(totals), torch.cat(aleatorics)
    # Entropy is concave, so only rounding can make the difference negative.
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp(min=0.0))
