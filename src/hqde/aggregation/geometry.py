"""What follows from the Gram matrix alone: no function here knows how many coordinates there are.

Points are written as weights over the n rows and, last, the origin: x = Σᵢ pᵢ xᵢ with Σᵢ pᵢ = 1. With G the
Gram matrix around any reference, ‖x - y‖² = (p - q)ᵀ G (p - q).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of what float64 makes of equal points, relative to the products that it is the difference of.
ROUNDING = 1e-13


def squared_distances(gram: Tensor) -> Tensor:
    """Between all points, ``(n + 1, n + 1)``; the origin is last, so the last row holds squared norms.

    >>> squared_distances(torch.tensor([[0.0, 0.0, 0.0], [0.0, 25.0, 9.0], [0.0, 9.0, 9.0]]))
    tensor([[ 0., 25.,  9.],
            [25.,  0., 16.],
            [ 9., 16.,  0.]])
    """
    own = gram.diagonal()
    sums = own.unsqueeze(0) + own.unsqueeze(1)
    squares = sums - 2.0 * gram
    squares[squares <= ROUNDING * sums] = 0.0
    return squares.fill_diagonal_(0.0)


def squared_distances_to(point: Tensor, gram: Tensor) -> Tensor:
    """``(m,)``: from each of m points to the one with weights ``(m,)``.

    >>> squared_distances_to(torch.tensor([0.5, 0.5]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    tensor([1., 1.])
    """
    towards = gram @ point
    return (gram.diagonal() - 2.0 * towards + point @ towards).clamp_min_(0.0)


def mixed_gram(matrix: Tensor, gram: Tensor) -> Tensor:
    """The Gram matrix ``(k + 1, k + 1)`` of k mixtures with weights ``(k, n + 1)``, and the origin.

    >>> line = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])  # rows -1 and 1
    >>> mixed_gram(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]), line)
    tensor([[1., 0., 0.],
            [0., 0., 0.],
            [0., 0., 0.]])
    """
    origin = torch.zeros_like(matrix[:1])
    origin[0, -1] = 1.0
    points = torch.cat([matrix, origin])
    products = points @ gram @ points.T
    return 0.5 * (products + products.T)


def share_median(values: Tensor, shares: Tensor) -> float:
    """The smallest of the values that half of the shares do not exceed.

    >>> share_median(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.2, 0.4, 0.4]))
    2.0
    """
    order = values.argsort(stable=True)
    reached = shares[order].cumsum(0) >= 0.5 * shares.sum() * (1.0 - ROUNDING)
    return float(values[order][reached][0])


def centred_gram(weights: Tensor, gram: Tensor) -> Tensor:
    """Inner products ``(m, m)`` of points minus their mean with ``weights (m,)``.

    >>> centred_gram(torch.tensor([0.5, 0.5]), torch.tensor([[0.0, 0.0], [0.0, 4.0]]))
    tensor([[ 1., -1.],
            [-1.,  1.]])
    """
    towards = gram @ weights
    return gram - towards.unsqueeze(0) - towards.unsqueeze(1) + weights @ towards
