"""Searching sets of members without an annealer: all of them, or greedily and by swaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hqde.errors import PreconditionError
from hqde.quantum.qubo import Budget

Matrix = npt.NDArray[np.float64]
Members = tuple[int, ...]

MOST_SETS = 2_000_000
CHUNK_NUMBERS = 2**23


def brute_force(gram: Matrix, size: int, budgets: Sequence[Budget] = ()) -> Members | None:
    """The best of all sets of ``size`` members: the least ``xᵀ E x``, of equal ones the first in order.

    Sets are enumerated by their first ``size − 1`` members, and all last members of one such beginning are
    compared at once, from the sum of the beginning's rows of E.

    Args:
        gram: ``(m, m)`` symmetric.
        size: from 1 to m, with at most 2 000 000 sets.
        budgets: bounds that the set keeps to.

    Returns:
        Ascending positions, or None where no set keeps to the budgets.

    Raises:
        PreconditionError: more sets than that.

    >>> brute_force(np.diag([3.0, 1.0, 2.0]), 2)
    (1, 2)
    """
    num_members = len(gram)
    count = math.comb(num_members, size)
    if count > MOST_SETS:
        raise PreconditionError(
            f"brute force over {count} sets of {size} among {num_members} members is too much (at most "
            f"{MOST_SETS}): use the sampler 'auto'."
        )
    prefixes = _beginnings(num_members, size)
    diagonal, order = gram.diagonal(), np.arange(num_members)
    best, found = math.inf, None
    step = max(1, CHUNK_NUMBERS // (num_members * max(1, size - 1)))
    for start in range(0, len(prefixes), step):
        part = prefixes[start : start + step]
        rows = gram[part].sum(axis=1)
        own = np.take_along_axis(rows, part, axis=1).sum(axis=1)
        energies = own[:, None] + 2.0 * rows + diagonal
        last = part[:, -1:] if size > 1 else np.full((len(part), 1), -1)
        allowed = order > last
        for budget in budgets:
            costs = np.asarray(budget.costs)
            allowed &= costs[part].sum(axis=1)[:, None] + costs <= budget.limit * (1.0 + 1e-12)
        energies = np.where(allowed, energies, math.inf)
        place = int(energies.argmin())
        if energies.flat[place] < best:
            best = float(energies.flat[place])
            row, column = divmod(place, num_members)
            found = (*(int(member) for member in part[row]), column)
    return found


def greedy(gram: Matrix, size: int) -> Members:
    """Forward selection: at each step the member that leaves the least ``xᵀ E x``.

    >>> greedy(np.diag([3.0, 1.0, 2.0]), 2)
    (1, 2)
    """
    chosen: list[int] = []
    costs = gram.diagonal().copy()
    for _ in range(size):
        costs[chosen] = math.inf
        member = int(costs.argmin())
        chosen.append(member)
        costs += 2.0 * gram[member]
    return tuple(sorted(chosen))


def swap_search(gram: Matrix, start: Members, budgets: Sequence[Budget] = ()) -> Members:
    """Swap one member for one outside, the best swap first, until none helps.

    Args:
        gram: ``(m, m)`` symmetric.
        start: positions that keep to the budgets.
        budgets: every set on the way keeps to them.

    >>> swap_search(np.diag([3.0, 1.0, 2.0]), (0, 1))
    (1, 2)
    """
    inside = np.zeros(len(gram), dtype=bool)
    inside[list(start)] = True
    rows, diagonal = gram[inside].sum(axis=0), gram.diagonal()
    scale = float(np.abs(diagonal).max()) or 1.0
    spent = [float(np.asarray(budget.costs)[inside].sum()) for budget in budgets]
    while True:
        out, new = np.flatnonzero(inside), np.flatnonzero(~inside)
        if not len(new):
            return tuple(int(member) for member in out)
        gains = (diagonal[out] - 2.0 * rows[out])[:, None] + (diagonal[new] + 2.0 * rows[new])
        gains = gains - 2.0 * gram[np.ix_(out, new)]
        for budget, used in zip(budgets, spent, strict=True):
            costs = np.asarray(budget.costs)
            gains[used - costs[out][:, None] + costs[new] > budget.limit * (1.0 + 1e-12)] = math.inf
        place = int(gains.argmin())
        if gains.flat[place] >= -1e-14 * scale:
            return tuple(int(member) for member in out)
        leaving, entering = (int(x) for x in (out[place // len(new)], new[place % len(new)]))
        inside[leaving], inside[entering] = False, True
        rows = rows + gram[entering] - gram[leaving]
        spent = [
            used + budget.costs[entering] - budget.costs[leaving]
            for budget, used in zip(budgets, spent, strict=True)
        ]


def nearest_within(preference: Matrix, size: int, budgets: Sequence[Budget]) -> Members | None:
    """The set of ``size`` members within the budgets that is liked best: an integer linear program.

    ``max Σ_i preference_i x_i`` over x in {0, 1}^m with ``Σ x = size`` and the budgets, by branch and bound.

    Args:
        preference: ``(m,)``.
        size: of the set.
        budgets: bounds that the set keeps to.

    Returns:
        Ascending positions, or None where no set keeps to the budgets.

    >>> nearest_within(np.array([3.0, 2.0, 1.0]), 2, [Budget("bytes", (5.0, 1.0, 1.0), 5.0)])
    (1, 2)
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    for slack in (0.0, 1e-5):  # the solver's own tolerance may let a set through that costs too much
        constraints = [LinearConstraint(np.ones(len(preference)), size, size)]
        for budget in budgets:
            unit = max(budget.limit, *budget.costs) or 1.0  # bytes by the million would upset tolerances
            most = budget.limit / unit * (1.0 - slack)
            constraints.append(LinearConstraint(np.asarray(budget.costs) / unit, -np.inf, most))
        found = milp(-preference, constraints=constraints, integrality=1, bounds=Bounds(0, 1))
        if found.x is None:
            return None
        members = tuple(int(member) for member in np.flatnonzero(found.x > 0.5))
        if len(members) == size and all(budget.allows(members) for budget in budgets):
            return members
    return None


def _beginnings(num_members: int, size: int) -> npt.NDArray[np.int64]:
    """All ascending (size − 1)-tuples that have room for one more member after them, in order."""
    found = np.zeros((1, 0), dtype=np.int64)
    for length in range(1, size):
        first = found[:, -1] + 1 if length > 1 else np.zeros(1, dtype=np.int64)
        counts = num_members - (size - length) - first  # places that leave room for the rest
        starts = np.repeat(first, counts)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found = np.column_stack([np.repeat(found, counts, axis=0), starts + offsets])
    return found
