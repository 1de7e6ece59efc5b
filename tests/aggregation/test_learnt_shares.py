"""Shares that are learnt: those of least loss, found without the rows that do not help."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from hqde.aggregation import LearntShares
from hqde.errors import ConfigError, PreconditionError


def quadratic(points, goal):
    """The squared distance of a weighted mean of ``points (n, d)`` to a goal ``(d,)``, and its slope."""

    def slope(shares):
        away = shares @ points - goal
        return float(away @ away), 2.0 * points @ away

    return slope


def equal(count):
    return torch.full((count,), 1.0 / count, dtype=torch.float64)


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_the_loss_comes_near_that_of_the_best_shares(count, seed):
    draws = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 5, generator=draws, dtype=torch.float64)
    slope = quadratic(points, torch.randn(5, generator=draws, dtype=torch.float64))
    found, _ = LearntShares(steps=400, least=0.0).learn(equal(count), slope)
    best = minimize(
        lambda x: slope(torch.tensor(x))[0],
        equal(count).numpy(),
        jac=lambda x: slope(torch.tensor(x))[1].numpy(),
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1.0},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    start = slope(equal(count))[0]
    assert float(found.sum()) == pytest.approx(1.0)
    assert bool((found >= 0).all())
    assert slope(found)[0] <= best.fun + 0.02 * (start - best.fun) + 1e-9


@given(st.integers(0, 10_000))
def test_each_step_that_is_made_lowers_the_loss(seed):
    draws = torch.Generator().manual_seed(seed)
    points = 10.0 ** torch.randint(-3, 4, (6, 1), generator=draws) * torch.randn(6, 3, generator=draws)
    slope, shares = quadratic(points.double(), torch.zeros(3, dtype=torch.float64)), equal(6)
    losses = [slope(LearntShares(steps=k, least=0.0).learn(shares, slope)[0])[0] for k in (1, 2, 5, 20, 60)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(slope(shares)[0])


def test_rows_that_do_not_help_get_nothing_and_the_reason():
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [40.0, 40.0], [-9.0, 30.0]], dtype=torch.float64)
    given_shares = torch.tensor([0.1, 0.1, 0.4, 0.4])  # most of the weight is bad
    before = given_shares.clone()
    shares, reasons = LearntShares(steps=60).learn(
        given_shares, quadratic(points, torch.tensor([0.5, 0.5]).double())
    )
    assert shares[:2].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert shares[2:].tolist() == [0.0, 0.0]
    assert list(reasons) == [2, 3]
    assert all("held-out rows" in reason for reason in reasons.values())
    assert torch.equal(given_shares, before)


@pytest.mark.parametrize("scale", [-1.0, -100.0, -1e4, -1e12, 1e30])
def test_a_huge_row_does_not_keep_others_from_being_judged(scale):
    honest = torch.tensor([[1.0, 0.2], [0.8, -0.1], [1.2, 0.1]], dtype=torch.float64)
    points = torch.cat([honest, -honest[:1], scale * honest[1:2]])
    shares, _ = LearntShares().learn(equal(5), quadratic(points, torch.tensor([2.0, 0.05]).double()))
    assert shares[3:].tolist() == [0.0, 0.0]


def test_the_loss_is_never_above_that_of_the_mean_and_a_small_share_that_helps_stays():
    slope = quadratic(torch.tensor([[0.0], [1000.0]]).double(), torch.tensor([5.0]).double())
    given_shares = torch.tensor([0.995, 0.005])
    shares, reasons = LearntShares().learn(given_shares, slope)
    assert slope(shares)[0] <= slope(given_shares.double())[0]
    assert shares.tolist() == pytest.approx([0.995, 0.005])
    assert reasons == {}


@given(st.integers(0, 10_000), st.floats(0.0, 0.9))
def test_the_loss_never_rises_whatever_is_dropped(seed, least):
    draws = torch.Generator().manual_seed(seed)
    points = 10.0 ** torch.randint(-3, 4, (6, 1), generator=draws) * torch.randn(6, 3, generator=draws)
    slope = quadratic(points.double(), torch.randn(3, generator=draws).double())
    shares = torch.rand(6, generator=draws).double()
    shares /= shares.sum()
    found, _ = LearntShares(least=least).learn(shares, slope)
    assert slope(found)[0] <= slope(shares)[0] * (1 + 1e-12)


def test_rows_whose_loss_is_not_finite_are_left_out_and_where_all_are_the_shares_stay():
    points = torch.tensor([0.0, 1.0, 1e30])

    def slope(shares):
        mean = float(shares.float() @ points)
        return (math.inf if mean > 1e6 else (mean - 0.5) ** 2), 2 * (mean - 0.5) * points.double()

    shares, reasons = LearntShares().learn(equal(3), slope)
    assert shares.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.05)
    assert list(reasons) == [2]
    assert LearntShares().learn(equal(3), lambda shares: (math.nan, shares))[0].tolist() == equal(3).tolist()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: LearntShares(steps=0), ConfigError),
        (lambda: LearntShares(least=1.0), ConfigError),
        (lambda: LearntShares().learn(torch.tensor([0.5, 0.6]), lambda s: (0.0, s)), PreconditionError),
        (lambda: LearntShares().learn(torch.tensor([-1.0, 2.0]), lambda s: (0.0, s)), PreconditionError),
    ],
)
def test_values_out_of_range_are_refused(make, error):
    with pytest.raises(error):
        make()
