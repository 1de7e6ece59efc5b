"""Superposition against its closed forms; measurement against its frequencies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.errors import PreconditionError
from hqde.metrics import nll
from hqde.quantum import confidence_weights, fit_coherence, measure, superpose


def draw(seed, members=4, rows=5, classes=6, spread=3.0):
    draws = torch.Generator().manual_seed(seed)
    probs = torch.softmax(spread * torch.randn(members, rows, classes, generator=draws).double(), 2)
    weights = torch.rand(members, generator=draws).double()
    return probs, weights / weights.sum()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(1, 9))
def test_without_coherence_it_is_the_linear_pool_and_with_it_the_hellinger_barycentre(seed, members):
    probs, weights = draw(seed, members)
    linear = torch.einsum("m,mnc->nc", weights, probs)
    torch.testing.assert_close(superpose(probs, weights, 0.0), linear)
    power = torch.einsum("m,mnc->nc", weights.sqrt(), probs.sqrt()) ** 2
    torch.testing.assert_close(superpose(probs, weights, 1.0), power / power.sum(1, keepdim=True))
    between = superpose(probs, weights, 0.3)
    torch.testing.assert_close(
        between, (0.7 * linear + 0.3 * power) / (0.7 * linear + 0.3 * power).sum(1, keepdim=True)
    )


def test_the_barycentre_is_nearest_to_all_members_in_the_hellinger_distance():
    probs, _ = draw(0, rows=1)
    equal = torch.full((4,), 0.25).double()
    found = superpose(probs, equal, 1.0)

    def distance(other):
        return float((probs.sqrt() - other.sqrt()).square().sum())

    for seed in range(200):
        noise = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed)).double()
        assert distance(torch.softmax(found.log() + 0.05 * noise, 1)) >= distance(found)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), coherence=st.floats(0, 1), spread=st.sampled_from([1.0, 80.0, 2000.0]))
def test_rows_sum_to_one_in_single_precision_whatever_the_members_rule_out(seed, coherence, spread):
    probs, weights = draw(seed, spread=spread)
    found = superpose(probs.float(), weights.float(), coherence)
    assert torch.isfinite(found).all()
    assert (found.sum(1) - 1).abs().max() <= 1e-6


def test_members_that_exclude_each_other_do_not_interfere():
    certain, weights = torch.eye(3)[:, None], torch.tensor([0.5, 0.3, 0.2])
    for coherence in (0.0, 0.4, 1.0):
        torch.testing.assert_close(superpose(certain, weights, coherence), weights[None])


def test_gradients_are_finite_at_zero():
    probs = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]], requires_grad=True)
    superpose(probs, torch.tensor([0.5, 0.5]), 1.0).square().sum().backward()
    assert torch.isfinite(probs.grad).all()


def test_confidence_is_a_softmax():
    assert confidence_weights(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.2689414, 0.7310586])


@pytest.mark.parametrize("seed", range(4))
def test_the_coherence_is_that_of_a_grid(seed, make_pool):
    probs, targets = make_pool(seed, rows=200)
    weights = torch.full((8,), 1 / 8).double()

    def cost(coherence):
        logs = superpose(probs, weights, coherence).log()
        temperatures = torch.linspace(-1.5, 1.5, 301).exp().tolist()
        prior = [torch.tensor(t).log().item() ** 2 / (2 * 0.25 * 200) for t in temperatures]
        return min(
            float(nll(torch.softmax(logs / t, 1), targets)) + p
            for t, p in zip(temperatures, prior, strict=True)
        )

    found = fit_coherence(probs, targets, weights)
    assert cost(found) <= min(cost(step / 20) for step in range(21)) + 1e-5


def test_a_lone_member_has_nothing_to_interfere_with(make_pool):
    probs, targets = make_pool(0, members=1)
    assert fit_coherence(probs, targets, torch.ones(1)) == 0.0


@pytest.mark.parametrize("coherence", [-0.1, 1.1, float("nan")])
def test_a_coherence_out_of_range_is_refused(coherence):
    with pytest.raises(PreconditionError, match="between 0 and 1"):
        superpose(torch.full((1, 1, 2), 0.5), torch.ones(1), coherence)


def test_measuring_draws_what_the_generator_says():
    probs = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]])
    drawn = measure(probs, 50_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, measure(probs, 50_000, generator=torch.Generator().manual_seed(0)))
    assert drawn[0].bincount(minlength=3).div(50_000).tolist() == pytest.approx([0.2, 0.8, 0.0], abs=0.01)
    assert (drawn[1] == 0).all()
    for bad in ((probs[0], 1), (probs, 0)):
        with pytest.raises(PreconditionError, match="at least 1 sample"):
            measure(*bad)
