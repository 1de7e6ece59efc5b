"""RMSE, Gaussian NLL and CRPS against scikit-learn, scipy and numerical integration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import root_mean_squared_error

from hqde.errors import NonFiniteError, PreconditionError
from hqde.metrics import crps_gaussian, gaussian_nll, rmse

values = st.floats(-1e3, 1e3)
rows = st.lists(st.tuples(values, st.floats(1e-3, 1e3), values), min_size=1, max_size=20)


def columns(listed: list[tuple[float, float, float]]) -> list[torch.Tensor]:
    return list(torch.tensor(listed, dtype=torch.float64).T.contiguous())


def integrated_crps(mean: float, sigma: float, target: float) -> float:
    """The definition, ∫ (F(x) - [x >= y])² dx, in two smooth halves."""
    below, _ = quad(
        lambda x: norm.cdf(x, mean, sigma) ** 2, min(mean, target) - 12 * sigma, target, limit=200
    )
    above, _ = quad(lambda x: norm.sf(x, mean, sigma) ** 2, target, max(mean, target) + 12 * sigma, limit=200)
    return below + above


@pytest.mark.parametrize("mean", [0.0, 1.5])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("target", [-2.0, 0.0, 1.5, 3.0])
def test_crps_against_numerical_integration(mean, sigma, target):
    found = crps_gaussian(*columns([(mean, sigma**2, target)])).item()
    assert found == pytest.approx(integrated_crps(mean, sigma, target), abs=1e-7)


def test_crps_of_a_standard_normal_at_its_mean():
    assert crps_gaussian(*columns([(0, 1, 0)])).item() == pytest.approx(
        (math.sqrt(2) - 1) / math.sqrt(math.pi)
    )


@settings(deadline=None)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_crps_of_a_point_prediction_is_its_absolute_error(pairs):
    mean, targets = torch.tensor(pairs, dtype=torch.float64).T
    expected = (mean - targets).abs().mean().item()
    assert crps_gaussian(mean, torch.zeros_like(mean), targets).item() == pytest.approx(expected)
    tiny = torch.full_like(mean, 1e-300)
    assert crps_gaussian(mean, tiny, targets).item() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(rows)
def test_nll_against_scipy(listed):
    mean, variance, targets = columns(listed)
    expected = -norm.logpdf(targets.numpy(), mean.numpy(), variance.sqrt().numpy()).mean()
    assert gaussian_nll(mean, variance, targets).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(rows)
def test_rmse_against_scikit_learn(listed):
    mean, _, targets = columns(listed)
    assert rmse(mean, targets).item() == pytest.approx(root_mean_squared_error(targets, mean))


@settings(deadline=None)
@given(rows, values, st.floats(0.1, 10.0))
def test_shifting_and_scaling_the_unit(listed, shift, scale):
    mean, variance, targets = columns(listed)
    moved = (scale * mean + shift, scale**2 * variance, scale * targets + shift)
    close = {"rel": 1e-6, "abs": 1e-6}
    assert rmse(moved[0], moved[2]).item() == pytest.approx(scale * rmse(mean, targets).item(), **close)
    assert crps_gaussian(*moved).item() == pytest.approx(
        scale * crps_gaussian(mean, variance, targets).item(), **close
    )
    assert gaussian_nll(*moved).item() == pytest.approx(
        gaussian_nll(mean, variance, targets).item() + math.log(scale), **close
    )


@settings(deadline=None)
@given(rows)
def test_crps_lies_between_zero_and_the_absolute_error_plus_the_spread(listed):
    mean, variance, targets = columns(listed)
    found = crps_gaussian(mean, variance, targets).item()
    # E|X - y| - E|X - X'| / 2, and E|X - y| <= |mean - y| + sigma
    assert 0.0 <= found <= ((mean - targets).abs() + variance.sqrt()).mean().item() + 1e-9


def test_crps_and_nll_are_least_at_the_true_distribution():
    gen = torch.Generator().manual_seed(0)
    targets = 1.0 + 2.0 * torch.randn(20_000, generator=gen, dtype=torch.float64)
    for score in (crps_gaussian, gaussian_nll):
        figures = {
            (mean, variance): score(*(torch.full_like(targets, v) for v in (mean, variance)), targets).item()
            for mean in (0.5, 1.0, 1.5)
            for variance in (2.0, 4.0, 8.0)
        }
        assert min(figures, key=figures.__getitem__) == (1.0, 4.0)


def test_float32_is_computed_in_double():
    mean, variance, targets = (torch.tensor([v], dtype=torch.float32) for v in (0.5, 0.25, 1.0))
    for score in (crps_gaussian, gaussian_nll):
        assert score(mean, variance, targets).dtype == torch.float64
        expected = score(mean.double(), variance.double(), targets.double())
        assert score(mean, variance, targets).item() == expected.item()


@pytest.mark.parametrize("score", [gaussian_nll, crps_gaussian])
def test_refusals(score):
    ones = torch.ones(3)
    with pytest.raises(
        PreconditionError, match=r"mean and variance and targets must all be \(n,\).*targets \(2,\)"
    ):
        score(ones, ones, ones[:2])
    with pytest.raises(PreconditionError, match=r"must all be \(n,\)"):
        score(ones[:, None], ones[:, None], ones[:, None])
    with pytest.raises(PreconditionError, match="n >= 1"):
        score(ones[:0], ones[:0], ones[:0])
    with pytest.raises(PreconditionError, match=r"variances .* -1"):
        score(ones, -ones, ones)
    for place, name in enumerate(("mean", "variance", "targets")):
        arguments = [ones.clone(), ones.clone(), ones.clone()]
        arguments[place][1] = float("nan")
        with pytest.raises(NonFiniteError, match=rf"{name} holds 1 .* first at \(1,\)"):
            score(*arguments)


def test_a_point_prediction_has_no_density():
    ones = torch.ones(2)
    with pytest.raises(
        PreconditionError, match="smallest is 0: a point prediction has no density; use crps_gaussian"
    ):
        gaussian_nll(ones, torch.tensor([1.0, 0.0]), ones)


def test_an_overflowing_likelihood_is_refused():
    far = torch.tensor([1e200], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="1e\\+200 standard deviations off; floor the variances"):
        gaussian_nll(far, torch.ones(1), torch.zeros(1))


def test_rmse_refusals():
    with pytest.raises(PreconditionError, match=r"predictions \(2,\), targets \(2, 1\)"):
        rmse(torch.ones(2), torch.ones(2, 1))
    with pytest.raises(NonFiniteError, match="targets holds 1"):
        rmse(torch.ones(1), torch.tensor([float("inf")]))
