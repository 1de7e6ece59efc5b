"""Regression: target units, variances, and how normal predictions are pooled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from hqde.ensemble import EfficiencyCombiner, LogPoolCombiner, make_combiner
from hqde.ensemble.prediction import LOG_VARIANCE_BOUNDS
from hqde.ensemble.regression import pool_normals, split_variance
from hqde.errors import ConfigError, PreconditionError
from hqde.training import objective


def outputs_by_hand(ensemble, rows):
    with torch.no_grad():
        ready = (rows - ensemble.normalization.mean) / ensemble.normalization.std
        return torch.stack([member.model(ready) for member in ensemble.members])


def test_gaussian_outputs_come_back_in_target_units(make_ensemble, rows):
    ensemble = make_ensemble(loss="gaussian_nll")
    outputs = outputs_by_hand(ensemble, rows)
    found = ensemble.predict_members(rows)
    assert found.shape == (3, 37, 2)
    torch.testing.assert_close(found[..., 0], 100 + 20 * outputs[..., 0])
    torch.testing.assert_close(found[..., 1], 400 * outputs[..., 1].exp())
    torch.testing.assert_close(ensemble.predict(rows), found[..., 0].mean(dim=0))


def test_mse_outputs_are_means_without_variance(make_ensemble, rows):
    ensemble = make_ensemble(loss="mse")
    found = ensemble.predict_members(rows)
    torch.testing.assert_close(found[..., 0], 100 + 20 * outputs_by_hand(ensemble, rows)[..., 0])
    assert (found[..., 1] == 0).all()
    split = ensemble.predict_uncertainty(rows)
    assert (split.aleatoric == 0).all()
    torch.testing.assert_close(split.total, found[..., 0].var(dim=0, correction=0), rtol=1e-4, atol=1e-4)


def test_log_variances_are_read_within_the_bounds_of_training(make_ensemble, rows):
    assert LOG_VARIANCE_BOUNDS == objective.LOG_VARIANCE_BOUNDS
    ensemble = make_ensemble(loss="gaussian_nll")
    with torch.no_grad():
        ensemble.members[0].model.head.bias[1] = 1e6
        ensemble.members[1].model.head.bias[1] = -1e6
    variance = ensemble.predict_members(rows)[..., 1]
    torch.testing.assert_close(variance[0], torch.full((37,), 400 * float(np.exp(10.0))))
    torch.testing.assert_close(variance[1], torch.full((37,), 400 * float(np.exp(-10.0))))


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 5), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e4]))
def test_pooling_is_the_law_of_total_variance(m, seed, offset):
    rng = np.random.default_rng(seed)
    means, variances = rng.normal(size=(m, 6)) + offset, rng.uniform(0.1, 3.0, size=(m, 6))
    weights = rng.dirichlet(np.ones(m))
    expected_mean = weights @ means
    expected = weights @ (variances + means**2) - expected_mean**2  # E[y²] − E[y]², in float64
    normals = torch.from_numpy(np.stack([means, variances], axis=2))
    pooled = pool_normals(normals, torch.from_numpy(weights))
    np.testing.assert_allclose(pooled[:, 0], expected_mean, rtol=1e-9)
    np.testing.assert_allclose(pooled[:, 1], expected, rtol=1e-6)
    split = split_variance(normals, torch.from_numpy(weights))
    np.testing.assert_allclose(split.aleatoric, weights @ variances, rtol=1e-9)
    torch.testing.assert_close(split.total, split.aleatoric + split.epistemic)
    assert (split.epistemic >= 0).all()


def test_members_that_agree_are_returned_exactly():
    member = torch.tensor([[3.3, 0.7], [1e4, 0.1]])
    pooled = pool_normals(member.expand(3, -1, -1), torch.full((3,), 1 / 3))
    assert torch.equal(pooled[:, 0], member[:, 0])
    torch.testing.assert_close(pooled[:, 1], member[:, 1])


def test_efficiency_weighs_the_mixture_and_log_pool_is_refused(make_ensemble, rows):
    ensemble = make_ensemble(loss="gaussian_nll", combiner=EfficiencyCombiner())
    weights = torch.softmax(torch.tensor([0.2, 0.4, 0.6]), dim=0)
    expected = (weights[:, None] * ensemble.predict_members(rows)[..., 0]).sum(dim=0)
    torch.testing.assert_close(ensemble.predict(rows), expected)
    with pytest.raises(ConfigError, match="use 'mean', 'efficiency' or"):
        make_ensemble(loss="mse", combiner=LogPoolCombiner())
    with pytest.raises(ConfigError, match="leave it at 1"):
        make_ensemble(loss="mse", temperature=2.0)
    with pytest.raises(ConfigError, match="loss 'cross_entropy' does not fit regression"):
        make_ensemble(loss="mse").__class__(
            make_ensemble(loss="mse").members,
            schema=make_ensemble(loss="mse").schema,
            normalization=ensemble.normalization,
            loss="cross_entropy",
        )
    assert make_combiner("efficiency").pools_normals
    with pytest.raises(PreconditionError, match="no class probabilities: use predict"):
        make_ensemble(loss="mse").predict_proba(rows)


def test_evaluation_against_scipy(make_ensemble, rows):
    ensemble = make_ensemble(loss="gaussian_nll")
    targets = torch.randn(37, generator=torch.Generator().manual_seed(0)) * 25 + 90
    evaluation = ensemble.evaluate((rows, targets))
    mean, variance = ensemble.combine(ensemble.predict_members(rows)).double().unbind(dim=1)
    scale = variance.sqrt().numpy()
    expected_nll = -norm.logpdf(targets.numpy(), loc=mean.numpy(), scale=scale).mean()
    z = (targets.double().numpy() - mean.numpy()) / scale
    crps = scale * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert evaluation.rmse == pytest.approx(float(((mean - targets) ** 2).mean().sqrt()), rel=1e-6)
    assert evaluation.nll == pytest.approx(expected_nll, rel=1e-5)
    assert evaluation.crps == pytest.approx(crps.mean(), rel=1e-5)
    assert evaluation.accuracy is evaluation.ece is evaluation.diversity is None
    assert [set(member) for member in evaluation.members] == [{"member", "rmse", "nll", "crps"}] * 3
    assert evaluation.rmse <= max(member["rmse"] for member in evaluation.members)


def test_points_have_no_nll_and_their_crps_is_the_absolute_error(make_ensemble, rows):
    ensemble = make_ensemble(loss="mse")
    targets = torch.linspace(50, 150, 37)
    evaluation = ensemble.evaluate((rows, targets))
    assert evaluation.nll is None
    assert evaluation.crps == pytest.approx(float((ensemble.predict(rows) - targets).abs().mean()))
    assert all(member["nll"] is None for member in evaluation.members)
