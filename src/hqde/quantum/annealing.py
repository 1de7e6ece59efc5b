"""Annealers put to work on selection: sizes are met by a price per member, never by a penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hqde.quantum.qubo import Budget, selection_bqm, selection_cqm
from hqde.quantum.search import Members

MOST_BISECTIONS = 24
NUM_KEPT = 16

# Inverse temperatures in units of the mean error over K², where differences between sets begin and end.
BETA_RANGE = (0.02, 430.0)


def annealed_sets(
    gram: Tensor, size: int, sampler: Any, *, parameters: Mapping[str, Any] | None = None, seed: int = 0
) -> list[Members]:
    """Sets of ``size`` members from a sampler of binary quadratic models, the best first.

    The energy is ``xᵀ E x / K² + μ Σ x``. With a high price μ of a member the least energy has few members,
    with a low one many; μ is bisected until the best sample has K. If that sample is the true minimum, it is
    the best of all sets of K. Should every price skip K, samples of K that were seen on the way count, and
    the best sample beside is trimmed or filled greedily.

    Args:
        gram: ``(m, m)`` from `hqde.quantum.error_gram`.
        size: K.
        sampler: any ``dimod.Sampler``.
        parameters: of its ``sample``; left out, ``num_reads``, ``num_sweeps``, ``beta_range`` and ``seed``
            where it knows them.
        seed: of the sampler, if it takes one.

    Returns:
        At most 16 different sets, at least one.

    Source: the research notes of this project: with a quadratic penalty simulated annealing found 0 of 6
    optima that it finds with a price.
    """
    num_members = len(gram)
    unit = float(gram.diagonal().mean()) / size**2 or 1.0
    given = dict(parameters) if parameters is not None else _defaults(sampler, unit, seed)
    matrix = gram.double().cpu().numpy()
    reach = 2.0 * float(np.abs(matrix).sum(axis=1).max()) / size**2 + unit
    low, high = -reach, reach
    seen: dict[Members, float] = {}
    for _ in range(MOST_BISECTIONS):
        price = (low + high) / 2.0
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


def _defaults(sampler: Any, unit: float, seed: int) -> dict[str, Any]:
    wanted = {
        "num_reads": 20,
        "num_sweeps": 1000,
        "beta_range": [BETA_RANGE[0] / unit, BETA_RANGE[1] / unit],
        "seed": int(seed) % 2**31,
    }
    known = getattr(sampler, "parameters", None) or {}
    return {name: value for name, value in wanted.items() if name in known}


def _members(sample: Mapping[int, int], num_members: int) -> Members:
    return tuple(member for member in range(num_members) if sample[member] > 0)


def _energy(matrix: np.ndarray[Any, np.dtype[np.float64]], members: Members) -> float:
    return float(matrix[np.ix_(members, members)].sum()) / max(1, len(members)) ** 2


def _resized(matrix: np.ndarray[Any, np.dtype[np.float64]], members: Members, size: int) -> Members:
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
