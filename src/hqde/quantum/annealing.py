"""Annealers put to work on selection: sizes are met by a price per member, never by a penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hqde.quantum.qubo import Budget, selection_bqm, selection_cqm
from hqde.quantum.search import Matrix, Members, greedy

MOST_PRICES = 24
NUM_KEPT = 16

# Inverse temperatures in units of the mean error over K², where differences between sets begin and end.
BETA_RANGE = (0.02, 430.0)


def annealed_sets(
    gram: Tensor, size: int, sampler: Any, *, parameters: Mapping[str, Any] | None = None, seed: int = 0
) -> list[Members]:
    """Sets of ``size`` members from a sampler of binary quadratic models, the best first.

    The energy is ``xᵀ E x / K² + μ Σ x``. With a high price μ of a member the least energy has few members,
    with a low one many. μ starts from what the last members of a greedy choice cost, and is bisected until
    the best sample has K. If that sample is the true minimum, it is the best of all sets of K. Should every
    price skip K, samples of K that were seen on the way count, and the best samples of other sizes, trimmed
    or filled greedily.

    Args:
        gram: ``(m, m)`` from `hqde.quantum.error_gram`.
        size: K.
        sampler: any ``dimod.Sampler``.
        parameters: of its ``sample``; left out, ``num_reads``, ``num_sweeps``, ``beta_range`` and ``seed``
            where it knows them.
        seed: of the sampler, if it takes one.

    Returns:
        At most 16 different sets, at least one.

    >>> import torch
    >>> from dimod import ExactSolver
    >>> annealed_sets(torch.diag(torch.tensor([3.0, 1.0, 2.0])), 2, ExactSolver())[0]
    (1, 2)
    """
    num_members = len(gram)
    unit = float(gram.diagonal().mean()) / size**2 or 1.0
    given = dict(parameters) if parameters is not None else _defaults(sampler, unit, seed)
    matrix = gram.double().cpu().numpy()
    price, step = _first_price(matrix, size)
    low, high = -math.inf, math.inf
    seen: dict[Members, float] = {}
    for _ in range(MOST_PRICES):
        samples = sampler.sample(selection_bqm(gram, size, price=price), **given)
        best = _members(samples.first.sample, num_members)
        for sample in samples.samples():
            members = _members(sample, num_members)
            if len(members) == size and members not in seen:
                seen[members] = _energy(matrix, members)
        if len(best) == size:
            break
        mended = _resized(matrix, best, size)
        seen.setdefault(mended, _energy(matrix, mended))
        low, high = (price, high) if len(best) > size else (low, price)
        if math.isinf(low) or math.isinf(high):
            price, step = (price + step if math.isinf(high) else price - step), 2.0 * step
        else:
            price = (low + high) / 2.0
    return sorted(seen, key=seen.__getitem__)[:NUM_KEPT]


def constrained_sets(gram: Tensor, size: int, budgets: Sequence[Budget], sampler: Any) -> list[Members]:
    """Sets from a sampler of constrained quadratic models (one with ``sample_cqm``), the best first.

    Only samples that keep to the size and the budgets are returned; there may be none.
    """
    samples = sampler.sample_cqm(selection_cqm(gram, size, budgets))
    found: dict[Members, float] = {}
    matrix = gram.double().cpu().numpy()
    for sample in samples.samples():
        members = _members(sample, len(gram))
        if len(members) == size and all(budget.allows(members) for budget in budgets):
            found[members] = _energy(matrix, members)
    return sorted(found, key=found.__getitem__)[:NUM_KEPT]


def built_in_sampler(name: str) -> Any:
    """``sa``: simulated annealing; ``pimc``: path-integral (simulated quantum) annealing.

    The second anneals several coupled copies of the state, so that they tunnel: their Trotter replicas stand
    for a transverse field.

    Source: dwave-samplers (Apache-2.0).
    """
    from dwave.samplers import PathIntegralAnnealingSampler, SimulatedAnnealingSampler

    return {"sa": SimulatedAnnealingSampler, "pimc": PathIntegralAnnealingSampler}[name]()


def _first_price(matrix: Matrix, size: int) -> tuple[float, float]:
    """What a member saves at the end of a greedy choice, as a price, and a step to try others by."""
    costs = []
    for count in (size, size + 1):
        if count <= len(matrix):
            members, last = greedy(matrix, count), greedy(matrix, count - 1)
            costs.append(matrix[np.ix_(members, members)].sum() - matrix[np.ix_(last, last)].sum())
    price = -float(np.mean(costs)) / size**2
    return price, max(float(np.ptp(costs)) / size**2, 0.02 * abs(price), 1e-9)


def _defaults(sampler: Any, unit: float, seed: int) -> dict[str, Any]:
    quantum = type(sampler).__name__ == "PathIntegralAnnealingSampler"  # it moves many copies at once
    wanted = {
        "num_reads": 5 if quantum else 20,
        "num_sweeps": 250 if quantum else 1000,
        "beta_range": [BETA_RANGE[0] / unit, BETA_RANGE[1] / unit],
        "seed": int(seed) % 2**31,
    }
    known = getattr(sampler, "parameters", None) or {}
    return {name: value for name, value in wanted.items() if name in known}


def _members(sample: Mapping[int, int], num_members: int) -> Members:
    return tuple(member for member in range(num_members) if sample[member] > 0)


def _energy(matrix: Matrix, members: Members) -> float:
    return float(matrix[np.ix_(members, members)].sum()) / max(1, len(members)) ** 2


def _resized(matrix: Matrix, members: Members, size: int) -> Members:
    """Drop or add members one at a time, each time what leaves the least ``xᵀ E x``."""
    inside = np.zeros(len(matrix), dtype=bool)
    inside[list(members)] = True
    while int(inside.sum()) != size:
        rows = matrix[inside].sum(axis=0) if inside.any() else np.zeros(len(matrix))
        if int(inside.sum()) > size:
            change = np.where(inside, matrix.diagonal() - 2.0 * rows, np.inf)
        else:
            change = np.where(inside, np.inf, matrix.diagonal() + 2.0 * rows)
        place = int(change.argmin())
        inside[place] = not inside[place]
    return tuple(int(member) for member in np.flatnonzero(inside))
