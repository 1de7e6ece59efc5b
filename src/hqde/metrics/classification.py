"""How good predicted class probabilities are."""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.errors import PreconditionError
from hqde.metrics.checks import check_finite, check_probs


def accuracy(probs: Tensor, targets: Tensor) -> Tensor:
    """The share of rows whose most probable class is the target; of equal probabilities the first counts.

    Args:
        probs: ``(n, c)`` probabilities.
        targets: ``(n,)`` class ids.

    Returns:
        A float64 scalar in [0, 1].

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_probs`.

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), torch.tensor([0, 1, 1])).item()
    0.6666
    """
    check_probs(probs, targets)
    return (probs.argmax(dim=1) == targets).double().mean()


def nll(probs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood: the mean of ``-log p[target]``.

    A target's probability below the smallest normal number of its dtype counts as that number, so that one
    probability of 0 costs 87.3 nats in float32 (708.4 in float64) and the mean stays finite.

    Args:
        probs: ``(n, c)`` probabilities.
        targets: ``(n,)`` class ids.

    Returns:
        A float64 scalar in nats, at least 0.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_probs`.

    >>> nll(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 1])).item()  # log(2) / 2
    0.3466
    """
    check_probs(probs, targets)
    chosen = probs.detach().gather(1, targets.long()[:, None])
    return -chosen.clamp(torch.finfo(probs.dtype).tiny, 1.0).double().log().mean()


def brier(probs: Tensor, targets: Tensor) -> Tensor:
    """Brier score: the mean over rows of ``sum_c (p_c - [c = target])²``.

    Args:
        probs: ``(n, c)`` probabilities.
        targets: ``(n,)`` class ids.

    Returns:
        A float64 scalar in [0, 2]; over two classes, twice the score of the positive class alone.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_probs`.

    Source: Brier, "Verification of forecasts expressed in terms of probability" (1950).

    >>> brier(torch.tensor([[0.75, 0.25], [0.0, 1.0]]), torch.tensor([0, 0])).item()  # (0.125 + 2) / 2
    1.0625
    """
    check_probs(probs, targets)
    errors = probs.detach().double()
    hit = errors.gather(1, targets.long()[:, None])
    return errors.scatter(1, targets.long()[:, None], hit - 1.0).square().sum(dim=1).mean()


def auroc(scores_positive: Tensor, scores_negative: Tensor) -> Tensor:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    From the average ranks of both sets together: ``(R - n(n+1)/2) / (n k)``, ``R`` the positives' rank sum.
    For detecting out-of-distribution inputs, the positives are the outsiders and the score an uncertainty.

    Args:
        scores_positive: ``(n,)`` scores of what should score high.
        scores_negative: ``(k,)`` scores of what should score low.

    Returns:
        A float64 scalar in [0, 1]; 0.5 is chance.

    Raises:
        PreconditionError: a set is empty or not a vector.
        NonFiniteError: a score is NaN or infinite.

    Source: Hanley & McNeil, "The meaning and use of the area under a ROC curve" (1982).

    >>> auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])).item()  # wins 3 and ties 1 of 4 pairs
    0.875
    """
    for name, scores in (("scores_positive", scores_positive), ("scores_negative", scores_negative)):
        if scores.ndim != 1 or scores.numel() == 0:
            raise PreconditionError(f"{name} must be (n,) with n >= 1, got {tuple(scores.shape)}")
        check_finite(scores, name)
    scores = torch.cat([scores_positive.detach().double(), scores_negative.detach().double()])
    _, places, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1.0) / 2.0
    num_positive, num_negative = scores_positive.numel(), scores_negative.numel()
    above = ranks[places[:num_positive]].sum() - num_positive * (num_positive + 1) / 2.0
    return above / (num_positive * num_negative)
