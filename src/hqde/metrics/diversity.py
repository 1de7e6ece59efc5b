"""How much the members of an ensemble differ.

A lone member is compared with itself: it disagrees nowhere and counts as one effective member.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.metrics.checks import check_member_probs, row_chunks
from hqde.metrics.decomposition import uncertainty


def disagreement_matrix(member_probs: Tensor) -> Tensor:
    """For each pair of members, the share of rows whose most probable classes differ.

    Args:
        member_probs: ``(m, n, c)`` probabilities.

    Returns:
        ``(m, m)`` float64 in [0, 1], symmetric, its diagonal 0.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    >>> a, b = [[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.7, 0.3]]
    >>> disagreement_matrix(torch.tensor([a, b])).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    check_member_probs(member_probs)
    num_members, num_rows, num_classes = member_probs.shape
    agreed = torch.zeros(num_members, num_members, dtype=torch.float64, device=member_probs.device)
    for chunk in row_chunks(member_probs):
        # Agreements are inner products of one-hot predictions; whole numbers, so float64 counts them exactly.
        chosen = torch.nn.functional.one_hot(chunk.argmax(dim=2), num_classes).double().flatten(1)
        agreed += chosen @ chosen.T
    return (num_rows - agreed) / num_rows


def disagreement(member_probs: Tensor) -> Tensor:
    """The mean of `disagreement_matrix` over pairs of different members; 0 for a lone member.

    Args:
        member_probs: ``(m, n, c)`` probabilities.

    Returns:
        A float64 scalar in [0, 1].

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Skalak, "The sources of increased accuracy for two proposed boosting algorithms" (1996).

    >>> a, b = [[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.7, 0.3]]
    >>> disagreement(torch.tensor([a, b])).item()
    0.5
    """
    return _pair_mean(disagreement_matrix(member_probs))


def q_statistic(member_probs: Tensor, targets: Tensor) -> Tensor:
    """Yule's Q of being right, averaged over pairs of members.

    For one pair ``Q = (N11 N00 - N01 N10) / (N11 N00 + N01 N10)``, where ``N10`` counts the rows that the
    first gets right and the second wrong, and so on. 1: they err together; 0: independently; -1: never
    together. A pair for which that is 0/0, say one always right, shows no association and counts as 0.

    Args:
        member_probs: ``(m, n, c)`` probabilities.
        targets: ``(n,)`` class ids.

    Returns:
        A float64 scalar in [-1, 1].

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Kuncheva & Whitaker, "Measures of diversity in classifier ensembles" (2003).

    >>> right, wrong = [0.9, 0.1], [0.1, 0.9]
    >>> a, b = [right, right, wrong, wrong], [right, right, right, wrong]
    >>> q_statistic(torch.tensor([a, b]), torch.zeros(4, dtype=torch.long)).item()  # (2 - 0) / (2 + 0)
    1.0
    """
    both_right, first_only, both_wrong = _right_and_wrong(member_probs, targets)
    together, apart = both_right * both_wrong, first_only * first_only.T
    total = together + apart
    return _pair_mean(torch.where(total > 0, (together - apart) / total.clamp(min=1.0), 0.0))


def double_fault(member_probs: Tensor, targets: Tensor) -> Tensor:
    """The share of rows that both members of a pair get wrong, averaged over pairs.

    Args:
        member_probs: ``(m, n, c)`` probabilities.
        targets: ``(n,)`` class ids.

    Returns:
        A float64 scalar in [0, 1]; for a lone member, its error rate.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Giacinto & Roli, "Design of effective neural network ensembles" (2001).

    >>> right, wrong = [0.9, 0.1], [0.1, 0.9]
    >>> a, b = [right, right, wrong, wrong], [right, right, right, wrong]
    >>> double_fault(torch.tensor([a, b]), torch.zeros(4, dtype=torch.long)).item()
    0.25
    """
    _, _, both_wrong = _right_and_wrong(member_probs, targets)
    return _pair_mean(both_wrong) / targets.shape[0]


def pairwise_kl(member_probs: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each member from each: the mean over rows of ``sum_c p log(p / q)``.

    ``0 log 0`` is 0, and a ``q`` below the smallest normal number of the dtype counts as that number, so that
    members which rule out each other's classes are far apart by a finite figure.

    Args:
        member_probs: ``(m, n, c)`` probabilities.

    Returns:
        ``(m, m)`` float64 in nats, at least 0, its diagonal 0; row ``i``, column ``j`` is KL(i || j).

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Kullback & Leibler, "On information and sufficiency" (1951).

    >>> pairwise_kl(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]))[0, 1].item()  # log 2
    0.6931
    """
    check_member_probs(member_probs)
    num_members, num_rows, _ = member_probs.shape
    tiny = torch.finfo(member_probs.dtype).tiny
    total = torch.zeros(num_members, num_members, dtype=torch.float64, device=member_probs.device)
    for chunk in row_chunks(member_probs):
        flat = chunk.clamp(min=0.0).flatten(1)
        logs = flat.clamp(min=tiny).log()
        total += (flat * logs).sum(dim=1)[:, None] - flat @ logs.T
    return (total / num_rows).clamp(min=0.0).fill_diagonal_(0.0)


def fidelity_matrix(member_probs: Tensor) -> Tensor:
    """How much each member overlaps with each: the fidelity of what they predict.

    ``K_ij = mean_n sum_c sqrt(p_i p_j)``, the Bhattacharyya coefficient: 1 for equal members, 0 for ones that
    never share a class. With members as states of amplitudes ``sqrt(p)`` it is the matrix of their inner
    products, and ``K / m`` the density matrix of the ensemble.

    Args:
        member_probs: ``(m, n, c)`` probabilities.

    Returns:
        ``(m, m)`` float64 in [0, 1], symmetric, its diagonal 1 but for rounding.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Bhattacharyya, "On a measure of divergence between two statistical populations" (1943).

    >>> fidelity_matrix(torch.tensor([[[1.0, 0.0]], [[0.36, 0.64]]])).tolist()
    [[1.0, 0.6], [0.6, 1.0]]
    """
    check_member_probs(member_probs)
    num_members, num_rows, _ = member_probs.shape
    overlap = torch.zeros(num_members, num_members, dtype=torch.float64, device=member_probs.device)
    for chunk in row_chunks(member_probs):
        roots = chunk.clamp(min=0.0).sqrt().flatten(1)
        overlap += roots @ roots.T
    return overlap / num_rows


def mutual_information(member_probs: Tensor) -> Tensor:
    """What a class tells of the member it comes from: BALD, or the Jensen-Shannon divergence.

    ``mean_n [H(mean_i p_i) - mean_i H(p_i)]``: the mean of the epistemic uncertainty of `uncertainty`.

    Args:
        member_probs: ``(m, n, c)`` probabilities.

    Returns:
        A float64 scalar in nats, from 0 for equal members to ``log m`` for members without overlap.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Houlsby et al., "Bayesian active learning for classification and preference learning" (2011).

    >>> mutual_information(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])).item()  # log 2
    0.6931
    """
    return uncertainty(member_probs).epistemic.mean()


def effective_members(member_probs: Tensor) -> Tensor:
    """The effective number of different members: ``exp(S(K / m))``.

    ``K`` is the `fidelity_matrix`. ``K / m`` has trace 1, a density matrix, and ``S`` is its von Neumann
    entropy: the Shannon entropy ``-sum λ log λ`` of its eigenvalues.

    Args:
        member_probs: ``(m, n, c)`` probabilities.

    Returns:
        A float64 scalar in [1, m]: 1 for m copies of one member, m for members without overlap.

    Raises:
        PreconditionError, NonFiniteError: see `hqde.metrics.checks.check_member_probs`.

    Source: Friedman & Dieng, "The Vendi Score" (2023).

    >>> twice_one_and_another = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    >>> effective_members(twice_one_and_another).item()  # eigenvalues 2/3 and 1/3: (3/2)^(2/3) · 3^(1/3)
    1.8899
    """
    overlap = fidelity_matrix(member_probs)
    num_members = len(overlap)
    eigenvalues = torch.linalg.eigvalsh(overlap / overlap.trace()).clamp(min=0.0)
    return torch.special.entr(eigenvalues).sum().exp().clamp(1.0, float(num_members))


def _right_and_wrong(member_probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts ``(m, m)``: rows right in both, right in the first alone, wrong in both."""
    check_member_probs(member_probs, targets)
    right = (member_probs.argmax(dim=2) == targets).double()
    both_right, num_right = right @ right.T, right.sum(dim=1)
    first_only = num_right[:, None] - both_right
    return both_right, first_only, targets.shape[0] - num_right[None, :] - first_only


def _pair_mean(matrix: Tensor) -> Tensor:
    """The mean above the diagonal of a symmetric matrix, or the single entry of a 1x1 one."""
    num_members = matrix.shape[0]
    if num_members == 1:
        return matrix[0, 0]
    rows, columns = torch.triu_indices(num_members, num_members, offset=1, device=matrix.device)
    return matrix[rows, columns].mean()
