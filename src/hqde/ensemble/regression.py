"""Pooling normal predictions: means and variances by the law of total variance."""

from __future__ import annotations

from torch import Tensor, stack

from hqde.metrics import Uncertainty


def pool_normals(member_normals: Tensor, weights: Tensor) -> Tensor:
    """Mean and variance of the mixture ``Σ_m w_m N(μ_m, σ²_m)``.

    ``μ = Σ w_m μ_m`` and ``σ² = Σ w_m σ²_m + Σ w_m (μ_m − μ)²``: what the members expect by themselves, plus
    how far they are apart.

    Args:
        member_normals: (m, n, 2) mean and variance of each member, in target units.
        weights: (m,) shares that sum to 1.

    Returns:
        (n, 2) mean and variance.

    >>> import torch
    >>> pool_normals(torch.tensor([[[1.0, 4.0]], [[3.0, 2.0]]]), torch.tensor([0.5, 0.5]))
    tensor([[2., 4.]])

    Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty estimation using deep
    ensembles" (2017), section 2.4.
    """
    mean, aleatoric, epistemic = _moments(member_normals, weights)
    return stack([mean, aleatoric + epistemic], dim=1)


def split_variance(member_normals: Tensor, weights: Tensor) -> Uncertainty:
    """Variances in squared target units: total = aleatoric (members' own) + epistemic (between members).

    Args and weights as in ``pool_normals``.

    >>> import torch
    >>> split = split_variance(torch.tensor([[[1.0, 4.0]], [[3.0, 2.0]]]), torch.tensor([0.5, 0.5]))
    >>> split.total, split.aleatoric, split.epistemic
    (tensor([4.]), tensor([3.]), tensor([1.]))
    """
    _, aleatoric, epistemic = _moments(member_normals, weights)
    return Uncertainty(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)


def _moments(member_normals: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shares = weights.to(member_normals.dtype).unsqueeze(1)
    means, variances = member_normals.unbind(dim=2)
    # Around the first member: members that agree then give exactly its mean and no spread.
    offsets = means - means[0]
    shift = (shares * offsets).sum(dim=0)
    return means[0] + shift, (shares * variances).sum(dim=0), (shares * (offsets - shift).square()).sum(dim=0)
