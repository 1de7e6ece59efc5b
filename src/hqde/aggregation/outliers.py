"""How far each row is from the others: scores for people and for reliability, none of them a rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.aggregation.geometric_median import GeometricMedian
from hqde.aggregation.geometry import share_median, squared_distances, squared_distances_to

# The median absolute deviation of normal numbers is this part of their standard deviation.
NORMAL_MAD = 0.6744897501960817


@dataclass(frozen=True)
class OutlierScores:
    """Three scores ``(n,)`` float64 of n rows; larger is farther out.

    Attributes:
        mad: distance from the geometric median, as a number of robust standard deviations above the median of
            these distances: (rᵢ - median r) / (MAD(r) / 0.6745). 0 where all are equally far.
        cosine: 1 - cos(rowᵢ, mean of the other rows), in [0, 2]; 1 where one of them is 0.
        euclidean: ‖rowᵢ - mean of the other rows‖, over the median of these distances.
    """

    mad: Tensor
    cosine: Tensor
    euclidean: Tensor


def outlier_scores(gram: Tensor) -> OutlierScores:
    """The three scores, from ``gram_matrix (n + 1, n + 1)``; reads no rows.

    Example:
        >>> from hqde.aggregation import gram_matrix, gram_parts
        >>> rows = torch.tensor([[1.0, 0.0], [1.1, 0.1], [0.9, 0.0], [-3.0, 0.0]])
        >>> found = outlier_scores(gram_matrix(gram_parts(rows)))
        >>> [int(score.argmax()) for score in (found.mad, found.cosine, found.euclidean)]
        [3, 3, 3]
    """
    n = len(gram) - 1
    shares = torch.full((n,), 1.0 / n, dtype=torch.float64)
    away = distances_to_median(gram, shares)
    middle = share_median(away, shares)
    spread = share_median((away - middle).abs(), shares)
    above = away - middle
    mad = torch.where(above == 0.0, 0.0, above * NORMAL_MAD / spread)  # infinite where nobody else differs

    squares = squared_distances(gram)
    cosine, euclidean = torch.ones_like(away), torch.zeros_like(away)
    for i in range(n):
        others = torch.full((n + 1,), 1.0 / max(1, n - 1), dtype=torch.float64)
        others[i] = others[-1] = 0.0
        if n == 1:
            others[-1] = 1.0  # nobody else: compared with a delta of zero
        to_others = squared_distances_to(others, gram)
        own, length, apart = float(squares[-1, i]), float(to_others[-1]), float(to_others[i])
        euclidean[i] = apart**0.5
        if own > 0.0 and length > 0.0:
            cosine[i] = 1.0 - 0.5 * (own + length - apart) / (own * length) ** 0.5
    typical = share_median(euclidean, shares)
    return OutlierScores(mad, cosine.clamp(0.0, 2.0), euclidean / typical if typical > 0 else euclidean)


def distances_to_median(gram: Tensor, shares: Tensor) -> Tensor:
    """``(n,)``: of the rows to their geometric median.

    >>> from hqde.aggregation import gram_matrix, gram_parts
    >>> gram = gram_matrix(gram_parts(torch.tensor([[0.0], [0.0], [4.0]])))
    >>> distances_to_median(gram, torch.full((3,), 1 / 3))
    tensor([0., 0., 4.], dtype=torch.float64)
    """
    weights = GeometricMedian().decide(gram, shares).weights
    assert weights is not None
    return squared_distances_to(weights, gram[:-1, :-1]).sqrt()


def agreement(gram: Tensor, shares: Tensor, *, tolerance: float = 2.0) -> Tensor:
    """How far each row agrees with the majority, ``(n,)`` in [0, 1].

    1 for rows whose distance r from the geometric median is at most ``tolerance`` times the median distance,
    and less in proportion beyond: tolerance · median(r) / rᵢ. Rows that are all alike all have 1.

    Example:
        >>> from hqde.aggregation import gram_matrix, gram_parts
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [102.0]])
        >>> agreement(gram_matrix(gram_parts(rows)), torch.full((4,), 1 / 4))[:3]
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    away = distances_to_median(gram, shares)
    limit = tolerance * share_median(away, shares)
    return torch.where(away <= limit, 1.0, limit / away)
