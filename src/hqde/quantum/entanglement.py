"""Entanglement of members: how their errors correlate, and the weights that follow."""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.errors import NonFiniteError, PreconditionError
from hqde.metrics.checks import CHUNK_NUMBERS, check_member_probs

JITTER = 1e-10  # of the mean error; members that err alike get equal weights instead of any


def member_errors(member_predictions: Tensor, targets: Tensor) -> Tensor:
    """What each member is off by: ``p_i − y``, or ``μ_i − y`` for regression.

    Args:
        member_predictions: ``(m, n, c)`` probabilities where ``targets`` are class ids, else ``(m, n, 2)``
            means and variances, of which the means count.
        targets: ``(n,)`` whole class ids, or floating-point numbers.

    Returns:
        ``(m, n, c)`` or ``(m, n, 1)`` float64.

    Raises:
        PreconditionError: shapes, kinds or ranges do not fit.
        NonFiniteError: a prediction or target is NaN or infinite.

    >>> member_errors(torch.tensor([[[0.75, 0.25]]]), torch.tensor([0])).tolist()
    [[[-0.25, 0.25]]]
    """
    if not targets.is_floating_point():
        check_member_probs(member_predictions, targets)
        errors = member_predictions.detach().double().clone()
        rows = torch.arange(len(targets), device=errors.device)
        errors[:, rows, targets.long()] -= 1.0
        return errors
    if member_predictions.ndim != 3 or member_predictions.shape[1:] != (len(targets), 2) or not len(targets):
        raise PreconditionError(
            f"predictions must be (m, {len(targets)}, 2), means and variances of at least one row, got "
            f"{tuple(member_predictions.shape)}."
        )
    errors = member_predictions.detach()[..., :1].double() - targets.double()[:, None]
    if not bool(torch.isfinite(errors).all()):
        raise NonFiniteError("member predictions and targets must be finite: check the members' weights.")
    return errors


def error_gram(member_predictions: Tensor, targets: Tensor) -> Tensor:
    """The matrix of the members' joint errors: ``E_ij = mean_n ⟨e_i, e_j⟩``, with ``e`` as `member_errors`.

    A pool with weights w that sum to 1 has the Brier score (mean squared error for regression) ``wᵀ E w``.
    The diagonal holds the members' own scores; the rest says which of them err together.

    Args:
        member_predictions: ``(m, n, c)`` or ``(m, n, 2)``, see `member_errors`.
        targets: ``(n,)``.

    Returns:
        ``(m, m)`` float64, symmetric and positive semidefinite.

    Raises:
        PreconditionError, NonFiniteError: see `member_errors`.

    >>> error_gram(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]), torch.tensor([1])).tolist()
    [[2.0, 1.0], [1.0, 0.5]]
    """
    return shrinkage(member_predictions, targets)[0]


def shrinkage(member_predictions: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """`error_gram`, and how little it is to be believed: the intensity λ of its shrinkage.

    In plain mathematics, after Ledoit and Wolf: ``λ = min(1, b² / d²)``, where ``b² = Σ_n ‖e_n e_nᵀ − E‖² /
    N²`` estimates the squared error of E over N rows, and ``d² = ‖E − F‖²`` is how far it stands from a
    target F in which all members are alike, ``F_ii`` the mean of the diagonal and ``F_ij`` the mean of the
    rest. Few rows, or members that are alike, give 1; many rows and members that differ give 0.

    Returns:
        The Gram matrix ``(m, m)`` and λ.

    Source: Ledoit & Wolf, "Honey, I shrunk the sample covariance matrix" (2004).

    >>> alike = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]]).expand(3, -1, -1)
    >>> shrinkage(alike, torch.tensor([0, 0]))[1]
    1.0
    """
    errors = member_errors(member_predictions, targets)
    num_members, num_rows, width = errors.shape
    gram = errors.new_zeros(num_members, num_members)
    squares = 0.0
    # ‖e eᵀ‖ = ‖eᵀ e‖: the smaller of the two products will do.
    product = "ink,jnk->nij" if num_members <= width else "ink,inl->nkl"
    step = max(1, CHUNK_NUMBERS // max(num_members * width, min(num_members, width) ** 2))
    for start in range(0, num_rows, step):
        part = errors[:, start : start + step]
        gram += part.flatten(1) @ part.flatten(1).T
        squares += float(torch.einsum(product, part, part).square().sum())
    gram = (gram + gram.T) / (2 * num_rows)
    noise = max(0.0, squares / num_rows - float(gram.square().sum())) / num_rows
    distance = float((gram - alike(gram)).square().sum())
    # Rounding alone keeps exactly equal members a little apart.
    negligible = distance <= 1e-20 * float(gram.square().sum())
    return gram, 1.0 if negligible else min(1.0, noise / distance)


def alike(gram: Tensor) -> Tensor:
    """The nearest matrix to ``gram`` ``(m, m)`` in which all members are alike: two means.

    >>> alike(torch.tensor([[1.0, 3.0], [3.0, 3.0]])).tolist()
    [[2.0, 3.0], [3.0, 2.0]]
    """
    num_members = len(gram)
    own = float(gram.diagonal().mean())
    joint = (float(gram.sum()) - own * num_members) / max(1, num_members * (num_members - 1))
    return torch.full_like(gram, joint).fill_diagonal_(own)


def minimum_variance_weights(gram: Tensor, *, shrink: float = 0.0) -> Tensor:
    """Entanglement weights: those of the linear pool whose errors cancel best.

    In plain mathematics: ``argmin wᵀ E' w`` over ``w ≥ 0, Σ w = 1``, with ``E' = (1 − λ) E + λ F`` and F from
    `alike`. Where all weights come out positive it is Bates and Granger's ``E'⁻¹ 1 / (1ᵀ E'⁻¹ 1)``. λ = 1
    gives equal weights. Solved exactly, by non-negative least squares on a Cholesky factor: ``½ xᵀ E' x −
    1ᵀ x`` over ``x ≥ 0`` has the same solution up to its sum.

    Args:
        gram: ``(m, m)`` from `error_gram`.
        shrink: λ, from 0 to 1, such as `shrinkage` gives.

    Returns:
        ``(m,)`` float64 weights. Members that err alike get equal ones, and so do members without errors.

    Raises:
        PreconditionError: the matrix is not square, or λ outside [0, 1].
        NonFiniteError: it holds NaN or infinity.

    >>> minimum_variance_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
    [0.75, 0.25]

    Source: Bates & Granger, "The combination of forecasts" (1969).
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not len(gram) or not 0.0 <= shrink <= 1.0:
        raise PreconditionError(
            f"minimum-variance weights need a square matrix and a shrinkage in [0, 1], got "
            f"{tuple(gram.shape)} and {shrink}."
        )
    if not bool(torch.isfinite(gram).all()):
        raise NonFiniteError("the matrix of the members' errors must be finite: check their predictions.")
    gram = gram.detach().double()
    shrunk = (1.0 - shrink) * gram + shrink * alike(gram)
    scale = float(shrunk.diagonal().mean())
    num_members = len(gram)
    if scale <= 0.0 or num_members == 1:
        return torch.full((num_members,), 1.0 / num_members, dtype=torch.float64, device=gram.device)
    # Deferred: nobody who only loads and predicts should wait for scipy.
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    jitter = JITTER * torch.eye(num_members, dtype=torch.float64, device=gram.device)
    factor = cholesky((shrunk / scale + jitter).cpu().numpy(), lower=True)
    solution, _ = nnls(factor.T, solve_triangular(factor, [1.0] * num_members, lower=True))
    found = torch.from_numpy(solution).to(gram.device)
    return found / found.sum()
