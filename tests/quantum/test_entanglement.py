"""Correlated errors, how far to believe them, and the weights that follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from hqde.errors import NonFiniteError, PreconditionError
from hqde.metrics import brier, rmse
from hqde.quantum import error_gram, minimum_variance_weights, shrinkage


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(1, 6))
def test_the_gram_matrix_holds_the_brier_score_of_every_linear_pool(make_pool, seed, members):
    probs, targets = make_pool(seed, members=members, rows=30)
    weights = torch.rand(members, generator=torch.Generator().manual_seed(seed)).double()
    weights /= weights.sum()
    pooled = torch.tensordot(weights, probs, dims=1)
    gram = error_gram(probs, targets)
    assert float(weights @ gram @ weights) == pytest.approx(float(brier(pooled, targets)), abs=1e-12)
    assert torch.equal(gram, gram.T)
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-12


def test_for_numbers_it_holds_the_mean_squared_error():
    draws = torch.Generator().manual_seed(0)
    truth, means = torch.randn(40, generator=draws).double(), torch.randn(3, 40, generator=draws).double()
    gram = error_gram(torch.stack([means, torch.ones_like(means)], 2), truth)
    assert float(gram.mean()) == pytest.approx(float(rmse(means.mean(0), truth)) ** 2, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(2, 6))
def test_weights_are_the_closed_form_where_it_is_positive(seed, members):
    draws = np.random.default_rng(seed)
    # Correlations below the ratio of the standard deviations keep every weight positive.
    spread = draws.uniform(1.0, 1.6, members)
    gram = torch.from_numpy(np.outer(spread, spread) * (0.4 + 0.6 * np.eye(members)))
    inverse = torch.linalg.solve(gram, torch.ones(members, dtype=torch.float64))
    closed = inverse / inverse.sum()
    found = minimum_variance_weights(gram)
    if bool((closed > 0).all()):
        torch.testing.assert_close(found, closed, rtol=1e-7, atol=1e-9)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weights_are_those_of_a_slow_solver_on_the_simplex(seed, make_gram):
    gram = make_gram(seed, members=6)
    slow = minimize(
        lambda w: w @ gram.numpy() @ w,
        np.full(6, 1 / 6),
        jac=lambda w: 2 * gram.numpy() @ w,
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    found = minimum_variance_weights(gram)
    assert (found >= 0).all()
    assert float(found @ gram @ found) <= slow.fun + 1e-9


def test_full_shrinkage_and_members_without_errors_give_equal_weights(make_gram):
    gram = make_gram(0, members=5)
    expected = torch.full((5,), 0.2).double()
    torch.testing.assert_close(minimum_variance_weights(gram, shrink=1.0), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(minimum_variance_weights(torch.zeros(5, 5)), expected)
    copies = torch.ones(5, 5) + torch.diag(torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0]))
    found = minimum_variance_weights(copies)
    assert found.tolist() == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.0], abs=1e-6)


def test_shrinkage_is_that_of_plain_loops(make_pool):
    probs, targets = make_pool(1, members=3, rows=25)
    errors = probs - torch.nn.functional.one_hot(targets, 4)
    each = [errors[:, n] @ errors[:, n].T for n in range(25)]
    gram = sum(each) / 25
    target = torch.full((3, 3), float(gram[~torch.eye(3, dtype=bool)].mean())).double()
    target.fill_diagonal_(float(gram.diagonal().mean()))
    noise = sum(float((one - gram).square().sum()) for one in each) / 25**2
    expected = min(1.0, noise / float((gram - target).square().sum()))
    found, intensity = shrinkage(probs, targets)
    torch.testing.assert_close(found, gram)
    assert intensity == pytest.approx(expected, rel=1e-9)


def test_shrinkage_fades_with_rows_and_stays_among_equals(make_pool):
    few, many = (shrinkage(*make_pool(0, rows=rows))[1] for rows in (10, 5000))
    assert many < 0.05 < few
    draws = torch.Generator().manual_seed(0)
    alike = torch.softmax(torch.randn(6, 50, 3, generator=draws), 2)
    assert shrinkage(alike, torch.zeros(50, dtype=torch.long))[1] > 0.5


def test_more_members_than_classes_take_the_other_product(make_pool):
    probs, targets = make_pool(3, members=12, rows=20)
    swapped = shrinkage(probs, targets)[1]
    halves = torch.cat([probs, torch.zeros(12, 20, 20)], 2)  # more classes than members, none of them used
    assert shrinkage(halves, targets)[1] == pytest.approx(swapped, rel=1e-9)


def test_what_does_not_fit_is_refused(make_pool):
    probs, targets = make_pool(0)
    with pytest.raises(PreconditionError, match="targets must be"):
        error_gram(probs, targets[:5])
    with pytest.raises(PreconditionError, match="means and variances"):
        error_gram(probs, targets.double())
    with pytest.raises(NonFiniteError):
        error_gram(torch.full((2, 80, 2), float("nan")), targets.double())
    with pytest.raises(PreconditionError, match="square matrix"):
        minimum_variance_weights(torch.ones(2, 3))
    with pytest.raises(NonFiniteError):
        minimum_variance_weights(torch.full((2, 2), float("inf")))
