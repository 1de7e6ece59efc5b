"""Selection against brute force in plain loops, and the seed's own formulation beside it."""

from __future__ import annotations

import itertools
import time

import dimod
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.errors import ConfigError, NonFiniteError, PreconditionError
from hqde.metrics import brier
from hqde.quantum import (
    Budget,
    annealed_sets,
    caruana,
    choose_members,
    constrained_sets,
    selection_bqm,
    selection_cqm,
    subset_energy,
)
from hqde.quantum.search import brute_force, greedy, nearest_within, swap_search


def slow_best(gram, size, budgets=()):
    """The best set and its energy, one set after the other."""
    matrix, best = gram.numpy(), (np.inf, None)
    for members in itertools.combinations(range(len(gram)), size):
        if all(budget.allows(members) for budget in budgets):
            best = min(best, (matrix[np.ix_(members, members)].sum(), members))
    return best[1]


# -- the model ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 7), price=st.floats(-2, 2))
def test_the_energy_is_the_brier_score(make_pool, make_gram, seed, size, price):
    probs, targets = make_pool(seed, members=7)
    gram = make_gram(seed, members=7)
    draws = np.random.default_rng(seed)
    members = sorted(draws.choice(7, size, replace=False).tolist())
    sample = {member: int(member in members) for member in range(7)}
    score = float(brier(probs[members].mean(0), targets))
    assert float(selection_bqm(gram, size, price=price).energy(sample)) == pytest.approx(score, abs=1e-12)
    assert subset_energy(gram, members) == pytest.approx(score, abs=1e-12)
    assert float(selection_cqm(gram, size).objective.energy(sample)) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_constrained_model_has_its_minimum_at_the_best_set(make_gram, seed):
    gram = make_gram(seed, members=9)
    budget = Budget("bytes", tuple(float(1 + member % 4) for member in range(9)), 6.0)
    samples = (
        dimod.ExactCQMSolver()
        .sample_cqm(selection_cqm(gram, 3, [budget]))
        .filter(lambda row: row.is_feasible)
    )
    found = tuple(sorted(member for member, chosen in samples.first.sample.items() if chosen))
    assert found == slow_best(gram, 3, [budget])


# -- solvers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", range(8))
def test_the_selected_set_is_that_of_brute_force_in_200_pools(make_gram, chunk):
    draws = np.random.default_rng(chunk)
    for seed in range(25 * chunk, 25 * (chunk + 1)):
        members = int(draws.integers(2, 21))
        size = int(draws.integers(1, members + 1))
        if members > 14:
            size = min(size, 4) if draws.random() < 0.5 else max(size, members - 3)
        gram = make_gram(seed, members=members, rows=40)
        found = choose_members(gram, size)
        assert found.members == slow_best(gram, size), (seed, members, size)
        assert found.exact


@pytest.mark.parametrize("sampler", ["greedy", "sa", "pimc"])
def test_heuristics_find_the_best_set_of_small_pools_too(make_gram, sampler):
    hits = 0
    for seed in range(12):
        gram = make_gram(seed, members=16, rows=60)
        found = choose_members(gram, 5, sampler=sampler, seed=seed)
        assert not found.exact
        hits += found.members == brute_force(gram.numpy(), 5)
    assert hits >= {"greedy": 10, "sa": 12, "pimc": 11}[sampler]


@pytest.mark.parametrize("seed", range(20))
def test_pools_too_large_for_brute_force_reach_the_best_known_in_time(make_gram, seed):
    gram = make_gram(1000 + seed, members=60, rows=150)
    began = time.perf_counter()
    found = choose_members(gram, 10, seed=seed)
    seconds = time.perf_counter() - began
    draws, best = np.random.default_rng(seed), np.inf
    for _ in range(60):  # the best known: swaps from sixty random sets
        start = tuple(sorted(draws.choice(60, 10, replace=False).tolist()))
        best = min(best, subset_energy(gram, swap_search(gram.numpy(), start)))
    assert found.energy <= best + 1e-12
    assert seconds < 5.0
    assert not found.exact


@pytest.mark.parametrize("seed", range(30))
def test_budgets_are_kept_and_the_best_set_within_them_is_found(make_gram, seed):
    draws = np.random.default_rng(seed)
    members, size = int(draws.integers(5, 13)), int(draws.integers(1, 5))
    gram = make_gram(seed, members=members)
    costs = [tuple(draws.integers(1, 9, members).astype(float)) for _ in range(2)]
    limits = [
        float(np.quantile([sum(draws.choice(c, size, replace=False)) for _ in range(20)], 0.4)) for c in costs
    ]
    budgets = [Budget(name, c, limit) for name, c, limit in zip(("bytes", "ms"), costs, limits, strict=True)]
    best = slow_best(gram, size, budgets)
    if best is None:
        with pytest.raises(PreconditionError, match=f"no {size} members keep to the budget"):
            choose_members(gram, size, budgets=budgets)
        with pytest.raises(PreconditionError, match=f"no {size} members keep to the budget"):
            choose_members(gram, size, budgets=budgets, sampler="greedy")
        return
    assert choose_members(gram, size, budgets=budgets).members == best
    for sampler in ("greedy", "sa"):
        found = choose_members(gram, size, budgets=budgets, sampler=sampler)
        assert all(budget.allows(found.members) for budget in budgets)
        assert found.energy <= subset_energy(gram, best) * 1.05


def test_a_large_pool_with_budgets(make_gram):
    gram = make_gram(0, members=60)
    budget = Budget("bytes", tuple(float(1 + member % 7) * 1e6 for member in range(60)), 25e6)
    found = choose_members(gram, 10, budgets=[budget])
    assert len(found.members) == 10
    assert budget.allows(found.members)
    assert swap_search(gram.numpy(), found.members, [budget]) == found.members


def test_any_sampler_will_do(make_gram):
    gram = make_gram(2, members=10)
    best = slow_best(gram, 3)
    exact = choose_members(gram, 3, sampler=dimod.ExactSolver())
    assert (exact.members, exact.solver) == (best, "ExactSolver")
    assert annealed_sets(gram, 3, dimod.ExactSolver())[0] == best
    assert len(choose_members(gram, 3, sampler=dimod.RandomSampler()).members) == 3
    budget = Budget("bytes", (1.0,) * 10, 3.0)
    hybrid = choose_members(gram, 3, sampler=dimod.ExactCQMSolver(), budgets=[budget])
    assert (hybrid.members, hybrid.solver) == (best, "ExactCQMSolver")
    assert constrained_sets(gram, 3, [budget], dimod.ExactCQMSolver())[0] == best


def test_the_same_seed_gives_the_same_set(make_gram):
    gram = make_gram(7, members=40)
    first, second = (choose_members(gram, 8, sampler="sa", seed=5) for _ in range(2))
    assert first == second


def test_the_price_of_a_member_sets_the_size(make_gram):
    gram = make_gram(3, members=8)
    sizes = []
    for price in (-1.0, 0.0, 1.0):
        lowest = dimod.ExactSolver().sample(selection_bqm(gram, 4, price=price)).first.sample
        sizes.append(sum(lowest.values()))
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (8, 0)


@pytest.mark.parametrize(("members", "size"), [(1, 1), (6, 1), (6, 6), (200, 2), (40, 38)])
def test_brute_force_at_the_edges(make_gram, members, size):
    gram = make_gram(0, members=members, rows=20)
    assert brute_force(gram.numpy(), size) == slow_best(gram, size)


def test_greedy_swaps_and_caruana_by_hand(make_pool):
    gram = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.2]])
    assert greedy(gram, 2) == (0, 2)
    assert swap_search(gram, (0, 1)) in ((0, 2), (1, 2))
    assert nearest_within(np.array([1.0, 2.0, 3.0]), 2, [Budget("ms", (1.0, 1.0, 9.0), 5.0)]) == (0, 1)
    probs, targets = make_pool(0)
    counts = caruana(probs, targets, 6)
    assert sum(counts) == 6
    chosen = []
    for _ in range(6):
        chosen.append(min(range(8), key=lambda m: float(brier(probs[[*chosen, m]].mean(0), targets))))
    assert counts == tuple(chosen.count(member) for member in range(8))


# -- the seed's formulation --------------------------------------------------------------------------------


def seed_matrix(accuracies, size):
    """The seed's QUBO without resource costs: rewards on the diagonal of what its solver then minimises."""
    count = len(accuracies)
    matrix = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            apart = 2.0 * abs(accuracies[i] - accuracies[j])
            matrix[i, j] = 10.0 * accuracies[i] if i == j else apart - 2.0 / size
    return matrix


def test_the_seed_s_formulation_selects_nobody(make_pool, make_gram):
    for seed in range(20):
        probs, targets = make_pool(seed, members=12)
        accuracies = (probs.argmax(2) == targets).double().mean(1).tolist()
        matrix = seed_matrix(accuracies, 4)
        model = dimod.BinaryQuadraticModel(matrix, "BINARY")
        chosen = [member for member, one in dimod.ExactSolver().sample(model).first.sample.items() if one]
        assert chosen == []
        assert len(choose_members(make_gram(seed, members=12), 4).members) == 4


# -- refusals ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(make_gram):
    gram = make_gram(0, members=5)
    for size in (0, 6, -1):
        with pytest.raises(PreconditionError, match=f"size={size} members cannot be chosen of 5: use 1 to 5"):
            choose_members(gram, size)
    with pytest.raises(ConfigError, match="did you mean 'greedy'"):
        choose_members(gram, 2, sampler="gredy")
    with pytest.raises(ConfigError, match="a int is no sampler"):
        choose_members(gram, 2, sampler=3)
    with pytest.raises(PreconditionError, match="a cost for each of 5 members, got 2"):
        choose_members(gram, 2, budgets=[Budget("bytes", (1.0, 2.0), 3.0)])
    with pytest.raises(PreconditionError, match="3 bytes, where the 2 cheapest take 4"):
        choose_members(gram, 2, budgets=[Budget("bytes", (2.0,) * 5, 3.0)])
    with pytest.raises(PreconditionError, match="finite costs"):
        Budget("bytes", (-1.0,), 3.0)
    with pytest.raises(PreconditionError, match="square matrix"):
        choose_members(torch.ones(2, 3), 1)
    with pytest.raises(NonFiniteError):
        choose_members(torch.full((2, 2), float("nan")), 1)
    with pytest.raises(PreconditionError, match="use the sampler 'auto'"):
        choose_members(make_gram(0, members=40, rows=20), 12, sampler="brute")
