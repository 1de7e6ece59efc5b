"""The set of members whose pool errs least: exact where it can be, annealed where it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hqde.errors import ConfigError, NonFiniteError, PreconditionError, did_you_mean
from hqde.quantum.annealing import annealed_sets, built_in_sampler, constrained_sets
from hqde.quantum.qubo import Budget, subset_energy
from hqde.quantum.search import (
    MOST_SETS,
    Matrix,
    Members,
    brute_force,
    greedy,
    nearest_within,
    swap_search,
)

SAMPLERS = ("auto", "brute", "greedy", "sa", "pimc")
NUM_STARTS = 16


@dataclass(frozen=True)
class Selection:
    """A set of members.

    Attributes:
        members: their positions, ascending.
        energy: the Brier score (or mean squared error) of their equal-weight pool, on the rows of the matrix.
        solver: who found it: ``brute``, ``greedy``, ``swaps``, ``sa``, ``pimc``, or the class of a sampler.
        exact: whether every set was looked at.
    """

    members: Members
    energy: float
    solver: str
    exact: bool


def choose_members(
    gram: Tensor,
    size: int,
    *,
    budgets: Sequence[Budget] = (),
    sampler: Any = "auto",
    seed: int = 0,
) -> Selection:
    """The ``size`` members whose equal-weight pool has the least Brier score (or mean squared error).

    In plain mathematics: ``argmin xᵀ E x / K²`` over x in {0, 1}^m with ``Σ x = K`` and the budgets. That
    members differ is in the off-diagonal of E; no bonus is added for it. All sets are tried where there are
    at most 2 000 000. Else greedy forward selection, simulated and path-integral annealing each propose sets
    (with budgets: sets within them), swaps polish every one, and the best is kept.

    Args:
        gram: ``(m, m)`` from `hqde.quantum.error_gram`.
        size: K.
        budgets: what the members may cost together.
        sampler: ``auto``, ``brute``, ``greedy``, ``sa``, ``pimc``, or any object with dimod's ``sample``
            (annealers, D-Wave's hardware) or ``sample_cqm`` (hybrid solvers). All but ``brute`` are polished.
        seed: of the annealers.

    Returns:
        The best set found.

    Raises:
        ConfigError: an unknown sampler.
        PreconditionError: K is not from 1 to m, costs are not one per member, no set keeps to the budgets, or
            too many sets for ``brute``.
        NonFiniteError: the matrix holds NaN or infinity.

    >>> chosen = choose_members(torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.2]]), 2)
    >>> chosen.members, round(chosen.energy, 4), chosen.exact
    ((0, 2), 0.6, True)
    """
    num_members = len(gram)
    _check(gram, size, budgets, sampler)
    matrix = gram.detach().double().cpu().numpy()
    exact = math.comb(num_members, size) <= MOST_SETS
    if sampler == "brute" or (exact and sampler == "auto"):
        best = brute_force(matrix, size, budgets)
        if best is None:
            raise _nobody_fits(size, budgets)
        return Selection(best, subset_energy(gram, best), "brute", exact=True)
    feasible = nearest_within(-matrix.diagonal(), size, budgets) if budgets else None
    if budgets and feasible is None:
        raise _nobody_fits(size, budgets)
    proposals = _proposals(gram, matrix, size, budgets, sampler, seed)
    if feasible is not None:
        proposals.append(("swaps", feasible))
    candidates = []
    for solver, members in proposals:
        within = members if all(b.allows(members) for b in budgets) else _moved(members, matrix, budgets)
        polished = swap_search(matrix, within, budgets)
        solver = "swaps" if solver == "greedy" and polished != members else solver
        candidates.append((subset_energy(gram, polished), polished, solver))
    energy, members, solver = min(candidates, key=lambda found: found[:2])
    return Selection(members, energy, solver, exact=False)


def caruana(member_predictions: Tensor, targets: Tensor, num_picks: int) -> tuple[int, ...]:
    """Greedy forward selection with replacement: how often each member is picked.

    At each step the member is added, again if need be, whose addition leaves the mean the least Brier score.

    Args:
        member_predictions: ``(m, n, c)``.
        targets: ``(n,)``.
        num_picks: picks in all.

    Returns:
        ``m`` counts that sum to ``num_picks``.

    >>> caruana(torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]), torch.tensor([0]), 3)
    (3, 0)

    Source: Caruana et al., "Ensemble selection from libraries of models" (2004).
    """
    from hqde.quantum.entanglement import error_gram

    matrix = error_gram(member_predictions, targets).cpu().numpy()
    counts, rows = [0] * len(matrix), np.zeros(len(matrix))
    for _ in range(num_picks):
        member = int((matrix.diagonal() + 2.0 * rows).argmin())
        counts[member] += 1
        rows = rows + matrix[member]
    return tuple(counts)


def _proposals(
    gram: Tensor, matrix: Matrix, size: int, budgets: Sequence[Budget], sampler: Any, seed: int
) -> list[tuple[str, Members]]:
    found: list[tuple[str, Members]] = []
    if sampler in ("auto", "greedy"):
        found.append(("greedy", greedy(matrix, size)))
    if budgets and sampler in ("auto", "greedy"):
        draws = np.random.default_rng(seed)
        for _ in range(NUM_STARTS):
            start = nearest_within(draws.random(len(matrix)), size, budgets)
            found += [("swaps", start)] if start is not None else []
    names = {"auto": ("sa", "pimc"), "sa": ("sa",), "pimc": ("pimc",)}
    if isinstance(sampler, str):
        for name in names.get(sampler, ()):
            found += [(name, m) for m in annealed_sets(gram, size, built_in_sampler(name), seed=seed)]
    elif hasattr(sampler, "sample_cqm"):
        sets = constrained_sets(gram, size, budgets, sampler)
        if not sets:
            raise PreconditionError(
                f"{type(sampler).__name__} returned no set of {size} members within the budgets: give it "
                "more time, or use the sampler 'auto'."
            )
        found += [(type(sampler).__name__, members) for members in sets]
    else:
        found += [(type(sampler).__name__, m) for m in annealed_sets(gram, size, sampler, seed=seed)]
    return found


def _moved(members: Members, matrix: Matrix, budgets: Sequence[Budget]) -> Members:
    """The set within the budgets that shares most members with this one; of those, the better members."""
    errors = matrix.diagonal()
    preference = -errors / (float(np.abs(errors).sum()) or 1.0)  # less than one shared member together
    preference[list(members)] += 2.0
    found = nearest_within(preference, len(members), budgets)
    if found is None:
        raise _nobody_fits(len(members), budgets)
    return found


def _nobody_fits(size: int, budgets: Sequence[Budget]) -> PreconditionError:
    least = "; ".join(
        f"{budget.limit:g} {budget.name}, where the {size} cheapest take {sum(sorted(budget.costs)[:size]):g}"
        for budget in budgets
    )
    return PreconditionError(f"no {size} members keep to the budget ({least}): choose fewer, or allow more.")


def _check(gram: Tensor, size: int, budgets: Sequence[Budget], sampler: Any) -> None:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
        raise PreconditionError(f"choosing members needs a square matrix, got {tuple(gram.shape)}.")
    if not bool(torch.isfinite(gram).all()):
        raise NonFiniteError("the matrix of the members' errors must be finite: check their predictions.")
    if not 1 <= size <= len(gram):
        raise PreconditionError(f"size={size} members cannot be chosen of {len(gram)}: use 1 to {len(gram)}.")
    for budget in budgets:
        if len(budget.costs) != len(gram):
            raise PreconditionError(
                f"a budget of {budget.name} needs a cost for each of {len(gram)} members, got "
                f"{len(budget.costs)}."
            )
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise ConfigError(f"unknown sampler '{sampler}'; {did_you_mean(sampler, SAMPLERS)}")
    if not isinstance(sampler, str) and not (hasattr(sampler, "sample") or hasattr(sampler, "sample_cqm")):
        raise ConfigError(
            f"a {type(sampler).__name__} is no sampler: give one of {', '.join(SAMPLERS)}, or an object with "
            "dimod's sample or sample_cqm."
        )
