"""Walkers that tunnel: in the cube, the same again, drawn together, better than chance where it is rugged."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.quantum import Tunnelling


def rugged(point):
    """Rastrigin's function on [−2.56, 2.56]^d, its minimum 0 off the middle."""
    x = (point - 0.6) * 5.12
    return float((x.square() - 10 * torch.cos(2 * math.pi * x) + 10).sum())


def searched(walkers, budget, *, dimensions=2, seed=0, function=rugged):
    seen = {}
    for number in range(budget):
        point = walkers.propose(seen, number, dimensions=dimensions, budget=budget, seed=seed)
        seen[number] = (point, function(point))
    return seen


@given(seed=st.integers(0, 1000), dimensions=st.integers(1, 5))
def test_every_proposal_is_in_the_cube_and_the_same_again(seed, dimensions):
    seen = searched(Tunnelling(num_walkers=3, first_step=1.5), 12, dimensions=dimensions, seed=seed)
    assert all(bool(((point >= 0) & (point <= 1)).all()) for point, _ in seen.values())
    again = Tunnelling(num_walkers=3, first_step=1.5).propose(
        {n: found for n, found in seen.items() if n < 8}, 8, dimensions=dimensions, budget=12, seed=seed
    )
    assert torch.equal(again, seen[8][0])


def test_what_came_later_or_failed_does_not_matter():
    walkers = Tunnelling(num_walkers=2)
    seen = searched(walkers, 10)
    early = {n: found for n, found in seen.items() if n < 6}
    point = walkers.propose(early, 6, dimensions=2, budget=10, seed=0)
    assert torch.equal(point, walkers.propose(seen, 6, dimensions=2, budget=10, seed=0))
    failed = early | {5: (early[5][0], math.inf)}
    assert bool(torch.isfinite(walkers.propose(failed, 6, dimensions=2, budget=10, seed=0)).all())
    alone = walkers.propose({}, 7, dimensions=2, budget=10, seed=0)
    assert bool(torch.isfinite(alone).all())


def test_walkers_move_on_where_most_places_have_no_value():
    walkers = Tunnelling(num_walkers=2)
    own, better = torch.tensor([0.9, 0.9]).double(), torch.tensor([0.1, 0.1]).double()
    seen = {0: (own, 3.0), 1: (own, 3.0), 2: (better, 1.0), 3: (better, 1.0)}
    failed = dict.fromkeys(range(4, 12), (own, math.inf))
    for number in (12, 13):
        arguments = {"dimensions": 2, "budget": 14, "seed": 0}
        point = walkers.propose(seen | failed, number, **arguments)
        assert torch.equal(point, walkers.propose(seen, number, **arguments))
        assert float((point - better).abs().max()) < 0.3


def test_the_coupling_grows_from_next_to_nothing_without_bound():
    walkers = Tunnelling()
    found = [walkers.coupling(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == sorted(found)
    assert found[0] < 0.02
    assert found[-1] > 5.0
    assert found[2] == pytest.approx(-0.5 * math.log(math.tanh(1.0)))


def test_walkers_end_nearer_to_each_other_than_they_began():
    walkers, ends = Tunnelling(num_walkers=4), []
    for seed in range(10):
        seen = searched(walkers, 80, seed=seed)
        first = torch.stack([seen[n][0] for n in range(4)])
        last = torch.stack([seen[n][0] for n in range(76, 80)])
        ends.append((float(torch.pdist(first).mean()), float(torch.pdist(last).mean())))
    assert sum(end for _, end in ends) < 0.3 * sum(start for start, _ in ends)


def test_on_a_rugged_function_walkers_find_better_places_than_chance():
    tunnelled, chance = [], []
    for seed in range(20):
        seen = searched(Tunnelling(), 80, seed=seed)
        tunnelled.append(min(value for _, value in seen.values()))
        draws = torch.Generator().manual_seed(seed)
        chance.append(min(rugged(torch.rand(2, generator=draws, dtype=torch.float64)) for _ in range(80)))
    assert sum(tunnelled) < 0.85 * sum(chance)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_walkers": 1}, "a ring has at least 2 walkers, got 1"),
        ({"field": 0.0}, "field must be above 0"),
        ({"last_step": math.nan}, "last_step must be above 0 and finite, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Tunnelling(**settings)
