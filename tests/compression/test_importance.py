"""Importance: the seed's worked example, units, damping."""

from __future__ import annotations

import math

import pytest
import torch

from hqde.compression import AdaptiveQuantizer, block_spread, decode, magnitude_score
from hqde.errors import ConfigError, NonFiniteError, PreconditionError

WEIGHTS = torch.tensor([0.001, 0.5, 2.0, 0.003, 1.5])
GRADIENT = torch.tensor([0.1, 0.01, 0.2, 0.05, 0.3])


def test_the_seeds_worked_example() -> None:
    score = magnitude_score(WEIGHTS, GRADIENT, over="max")
    assert score.tolist() == pytest.approx([0.10, 0.18, 0.90, 0.05, 0.83], abs=0.0051)  # as printed there
    assert torch.equal(AdaptiveQuantizer().compute_importance_score(WEIGHTS, GRADIENT), score)


def test_the_unit_of_weights_and_of_gradients_does_not_matter() -> None:
    score = magnitude_score(WEIGHTS, GRADIENT)
    torch.testing.assert_close(magnitude_score(WEIGHTS * 1e20, GRADIENT * 1e-20), score)
    rms = WEIGHTS.square().mean().sqrt(), GRADIENT.square().mean().sqrt()
    torch.testing.assert_close(score, 0.7 * WEIGHTS / rms[0] + 0.3 * GRADIENT / rms[1])
    torch.testing.assert_close(magnitude_score(WEIGHTS, torch.zeros(5)), 0.7 * WEIGHTS / rms[0])
    assert torch.equal(magnitude_score(torch.zeros(5)), torch.zeros(5))


def test_variance_is_the_mean_square_up_to_a_unit_and_bears_any_size() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    direct = torch.stack([part.square().mean() for part in values.split(128)])
    for size in (1e-30, 1.0, 1e30):
        spread = block_spread("variance", values * size)
        torch.testing.assert_close(spread / spread[0], direct / direct[0])
    assert block_spread("variance", torch.zeros(0)).shape == (0,)


def test_fisher_is_damped() -> None:
    values = torch.ones(256)
    gradient = torch.cat([torch.zeros(128), torch.ones(128)])
    spread = block_spread("fisher", values, gradient)
    assert spread.tolist() == pytest.approx([1.0, 3.0])
    assert block_spread("fisher", values, torch.zeros(256)).tolist() == pytest.approx([1.0, 1.0])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="variance, magnitude, fisher"):
        block_spread("hessian", WEIGHTS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs gradient"):
        block_spread("fisher", WEIGHTS)
    with pytest.raises(PreconditionError, match=r"\(2,\)"):
        magnitude_score(WEIGHTS, torch.ones(2))
    with pytest.raises(NonFiniteError, match="1 of 5"):
        block_spread("fisher", WEIGHTS, torch.tensor([1.0, 2.0, math.nan, 0.0, 0.0]))


def test_adaptive_quantizer_has_the_seeds_interface_and_real_bytes() -> None:
    draws = torch.Generator().manual_seed(0)
    weights = torch.randn(64, 100, generator=draws) * torch.exp(torch.randn(64, 1, generator=draws))
    quantizer = AdaptiveQuantizer()
    score = quantizer.compute_importance_score(weights, torch.randn(64, 100, generator=draws))
    restored, metadata = quantizer.adaptive_quantize(weights, score)
    assert torch.equal(restored.reshape(-1), decode(metadata["packet"]))
    assert metadata["compression_ratio"] == 4 * 6400 / metadata["packet"].nbytes
    assert 4 <= metadata["avg_bits"] <= 16
    assert metadata["scale"].shape == (50,)
    _, kept = quantizer.adaptive_quantize(weights, score, keep_budget=True)
    assert kept["avg_bits"] == 8.0
    assert 3.6 < kept["compression_ratio"] < 4.0
    assert (restored - weights).abs().max() < weights.abs().max() / 8
    one_outlier = torch.randn(12800, generator=draws)
    one_outlier[5] = 100.0
    restored, _ = quantizer.adaptive_quantize(one_outlier, quantizer.compute_importance_score(one_outlier))
    others = torch.arange(12800) >= 128
    error = (restored - one_outlier)[others].square().mean() / one_outlier[others].square().mean()
    assert error < 0.015  # the first HQDE's is 6: worse than zeros
    with pytest.raises(PreconditionError, match=r"\(3,\) for weights of \(5,\)"):
        quantizer.adaptive_quantize(WEIGHTS, torch.ones(3))
    with pytest.raises(ConfigError, match="an average of 2 bits"):
        AdaptiveQuantizer(base_bits=2)
    assert quantizer.adaptive_quantize(torch.zeros(0), torch.zeros(0))[0].shape == (0,)
