"""Choosing members as quadratic unconstrained binary optimisation (QUBO), for any dimod sampler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from hqde.errors import PreconditionError

if TYPE_CHECKING:
    from dimod import BinaryQuadraticModel, ConstrainedQuadraticModel


@dataclass(frozen=True)
class Budget:
    """A bound on what the chosen members cost together: ``Σ_{i in S} costs_i ≤ limit``.

    Args:
        name: what is spent, with its unit, such as ``"bytes"``.
        costs: of each member, at least 0.
        limit: at least 0.

    Raises:
        PreconditionError: a cost or the limit is negative or not finite.

    >>> Budget("bytes", (3.0, 5.0), 6.0).allows([0]), Budget("bytes", (3.0, 5.0), 6.0).allows([0, 1])
    (True, False)
    """

    name: str
    costs: tuple[float, ...]
    limit: float

    def __post_init__(self) -> None:
        if not all(0.0 <= value < float("inf") for value in (*self.costs, self.limit)):
            raise PreconditionError(
                f"a budget of {self.name} needs finite costs and a limit of at least 0, got "
                f"{list(self.costs)} and {self.limit}."
            )

    def spent(self, members: Iterable[int]) -> float:
        """What these members cost together."""
        return float(sum(self.costs[member] for member in members))

    def allows(self, members: Iterable[int]) -> bool:
        """Whether these members stay within the limit, but for rounding."""
        return self.spent(members) <= self.limit * (1.0 + 1e-12)


def subset_energy(gram: Tensor, members: Sequence[int]) -> float:
    """The score of the equal-weight pool of these members: ``xᵀ E x / k²``, x marking k members.

    It is the Brier score of the mean of their probabilities, or the mean squared error of their mean.

    >>> import torch
    >>> subset_energy(torch.tensor([[2.0, 1.0], [1.0, 0.5]]), [0, 1])
    1.125
    """
    chosen = gram.double()[list(members)][:, list(members)]
    return float(chosen.sum()) / len(members) ** 2


def selection_bqm(gram: Tensor, size: int, *, price: float = 0.0) -> BinaryQuadraticModel:
    """The binary quadratic model whose energy, for ``size`` members, is the pool's Brier score.

    In plain mathematics: ``H(x) = xᵀ E x / K² + μ (Σ_i x_i − K)``, with ``E`` from `hqde.quantum.error_gram`
    and x in {0, 1}^m. Among sets of K members the second term is 0. It is linear: μ, a price (or reward) for
    each member, steers how many the minimum has. A quadratic penalty ``λ (Σ x − K)²`` would put a wall of
    height λ between any two sets of K members, which annealers that flip one bit at a time do not climb.

    Args:
        gram: ``(m, m)`` from `hqde.quantum.error_gram`.
        size: K.
        price: μ.

    Returns:
        A ``dimod.BinaryQuadraticModel`` over the variables 0 … m−1.

    >>> import torch
    >>> float(selection_bqm(torch.tensor([[2.0, 1.0], [1.0, 0.5]]), 2).energy({0: 1, 1: 1}))
    1.125

    Source: Zhang, Burer & Street, "Ensemble pruning via semi-definite programming" (2006).
    """
    from dimod import BinaryQuadraticModel

    _check_size(gram, size)
    scaled = (gram.double() / size**2).cpu().numpy()
    num_members = len(scaled)
    quadratic = {
        (i, j): 2.0 * float(scaled[i, j]) for i in range(num_members) for j in range(i + 1, num_members)
    }
    linear = {i: float(scaled[i, i]) + price for i in range(num_members)}
    return BinaryQuadraticModel(linear, quadratic, -price * size, "BINARY")


def selection_cqm(gram: Tensor, size: int, budgets: Sequence[Budget] = ()) -> ConstrainedQuadraticModel:
    """The same with its constraints said as such: exactly ``size`` members, and the budgets.

    For solvers that take constraints, such as D-Wave's ``LeapHybridCQMSampler`` or ``dimod.ExactCQMSolver``.

    Returns:
        A ``dimod.ConstrainedQuadraticModel``; its objective is `selection_bqm`'s without a price.

    >>> import torch
    >>> model = selection_cqm(torch.eye(3), 2, [Budget("bytes", (1.0, 1.0, 5.0), 3.0)])
    >>> sorted(map(str, model.constraints))
    ['budget of bytes', 'size']
    """
    from dimod import BinaryQuadraticModel, ConstrainedQuadraticModel

    model = ConstrainedQuadraticModel()
    model.set_objective(selection_bqm(gram, size))
    ones = BinaryQuadraticModel(dict.fromkeys(range(len(gram)), 1.0), {}, 0.0, "BINARY")
    model.add_constraint(ones, sense="==", rhs=size, label="size")
    for budget in budgets:
        costs = BinaryQuadraticModel(dict(enumerate(budget.costs)), {}, 0.0, "BINARY")
        model.add_constraint(costs, sense="<=", rhs=budget.limit, label=f"budget of {budget.name}")
    return model


def _check_size(gram: Tensor, size: int) -> None:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not 1 <= size <= len(gram):
        raise PreconditionError(
            f"choosing needs a square matrix and a size from 1 to its number of members, got "
            f"{tuple(gram.shape)} and {size}."
        )
