"""Whether confidence means what it says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.errors import PreconditionError
from hqde.metrics.checks import check_probs


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """Rows binned by confidence, the largest probability of a row: what a reliability diagram draws.

    Attributes:
        confidence: ``(b,)`` float64, mean confidence of each bin's rows; 0 where the bin is empty.
        accuracy: ``(b,)`` float64, share of each bin's rows that are right; 0 where the bin is empty.
        count: ``(b,)`` int64, rows in each bin; skip the bins that hold none.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def reliability_bins(probs: Tensor, targets: Tensor, *, num_bins: int = 15) -> ReliabilityBins:
    """Mean confidence and accuracy in bins of equal width over (0, 1].

    Bin ``i`` of ``b`` holds confidences in ``(i/b, (i+1)/b]``, the edges rounded to the dtype of ``probs``.

    Args:
        probs: ``(n, c)`` probabilities.
        targets: ``(n,)`` class ids.
        num_bins: number of bins.

    Returns:
        The bins, lowest confidence first.

    Raises:
        PreconditionError: ``num_bins`` below 1; else see `hqde.metrics.checks.check_probs`.
        NonFiniteError: a probability is NaN or infinite.

    >>> bins = reliability_bins(torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1]), num_bins=2)
    >>> bins.confidence.tolist(), bins.accuracy.tolist(), bins.count.tolist()
    ([0.0, 0.8], [0.0, 0.5], [0, 2])
    """
    check_probs(probs, targets)
    if num_bins < 1:
        raise PreconditionError(f"num_bins must be at least 1, got {num_bins}")
    confidence, predicted = probs.detach().max(dim=1)
    edges = (torch.arange(1, num_bins, dtype=torch.float64) / num_bins).to(confidence)
    places = torch.bucketize(confidence, edges)
    count = torch.bincount(places, minlength=num_bins)
    filled = count.clamp(min=1).double()
    return ReliabilityBins(
        confidence=torch.bincount(places, weights=confidence.double(), minlength=num_bins) / filled,
        accuracy=torch.bincount(places, weights=(predicted == targets).double(), minlength=num_bins) / filled,
        count=count,
    )


def ece(probs: Tensor, targets: Tensor, *, num_bins: int = 15) -> Tensor:
    """Expected calibration error: the mean gap between confidence and accuracy.

    ``sum_b (count_b / n) |accuracy_b - confidence_b|`` over `reliability_bins`.

    Args:
        probs: ``(n, c)`` probabilities.
        targets: ``(n,)`` class ids.
        num_bins: number of bins of equal width.

    Returns:
        A float64 scalar in [0, 1].

    Raises:
        PreconditionError, NonFiniteError: see `reliability_bins`.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), eq. 3.

    >>> ece(torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1])).item()  # (0.1 + 0.7) / 2
    0.4
    """
    bins = reliability_bins(probs, targets, num_bins=num_bins)
    gaps = (bins.accuracy - bins.confidence).abs()
    return (gaps * bins.count).sum() / bins.count.sum()
