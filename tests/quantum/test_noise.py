"""Noise: what is drawn has the moments that the formulas say, and what is spent can be reckoned by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import PreconditionError
from hqde.quantum import (
    RDP_ORDERS,
    decohered,
    entangled_coefficients,
    epsilon_from_rdp,
    gaussian_rdp,
    langevin_gradient_std,
    langevin_step,
    privacy_spent,
)


def chains_on_a_posterior(*, momentum: float, gradient_noise: bool, steps: int = 1200, chains: int = 4000):
    """Walkers on the posterior of a normal mean: prior N(0, 1), forty rows of N(θ, 1); the exact one beside
    it.

    With ``gradient_noise`` the way a worker goes: SGD on a mean loss, with noise on its gradient.
    """
    draws = torch.Generator().manual_seed(3)
    rows = torch.randn(40, generator=draws, dtype=torch.float64) + 0.7
    count = len(rows)
    precision = 1.0 + count
    exact = float(rows.sum()) / precision, 1.0 / precision
    theta = torch.zeros(chains, dtype=torch.float64)
    velocity = torch.zeros_like(theta)
    rate = 0.0005 if not gradient_noise else 0.0005 * count
    for _ in range(steps):
        full = precision * theta - rows.sum()
        if not gradient_noise:
            theta = langevin_step(theta, full, rate, generator=draws)
            continue
        std = langevin_gradient_std(rate, 1.0, count, momentum=momentum)
        noise = std * torch.randn(chains, generator=draws, dtype=torch.float64)
        velocity = momentum * velocity + full / count + noise
        theta = theta - rate * velocity
    return theta, exact


@pytest.mark.parametrize(
    ("momentum", "gradient_noise"),
    [(0.0, False), (0.0, True), (0.9, True)],
    ids=["sgld", "sgd", "heavy ball"],
)
def test_langevin_dynamics_recover_a_conjugate_posterior(momentum, gradient_noise):
    found, (mean, variance) = chains_on_a_posterior(momentum=momentum, gradient_noise=gradient_noise)
    assert float(found.mean()) == pytest.approx(mean, rel=0.05)
    assert float(found.var()) == pytest.approx(variance, rel=0.05)


def test_colder_dynamics_spread_less_and_none_at_zero():
    draws = torch.Generator().manual_seed(0)
    theta = {}
    for temperature in (0.0, 0.25, 1.0):
        theta[temperature] = torch.zeros(4000, dtype=torch.float64)
        for _ in range(400):
            theta[temperature] = langevin_step(
                theta[temperature], theta[temperature] - 1.0, 0.05, temperature=temperature, generator=draws
            )
    assert torch.allclose(theta[0.0], torch.ones(4000, dtype=torch.float64), atol=1e-6)
    assert float(theta[0.25].var() / theta[1.0].var()) == pytest.approx(0.25, rel=0.1)


def test_a_step_is_the_formula_and_leaves_its_arguments():
    theta, gradient = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    noise = torch.randn(2, generator=torch.Generator().manual_seed(7))
    found = langevin_step(theta, gradient, 0.1, temperature=2.0, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, theta - 0.1 * gradient + math.sqrt(2 * 0.1 * 2.0) * noise)
    assert theta.tolist() == [1.0, 2.0]
    assert langevin_gradient_std(0.1, 2.0, 50) * 0.1 == pytest.approx(math.sqrt(2 * 0.1 * 2.0 / 50))


def test_decoherence_fades_a_temperature_exponentially():
    assert decohered(3.0, 2.0, 0.0) == 3.0
    assert decohered(3.0, 2.0, 0.5) == pytest.approx(3.0 / math.e)


# -- perturbations that cancel -----------------------------------------------------------------------------


@given(counts=st.lists(st.integers(1, 50), min_size=2, max_size=9))
def test_entangled_perturbations_cancel_whatever_the_shares(counts):
    shares = [count / sum(counts) for count in counts]
    for axis in (0, 1):
        found = [s * pair[axis] for s, pair in zip(shares, entangled_coefficients(shares), strict=True)]
        assert abs(sum(found)) < 1e-12


def test_entangled_perturbations_are_normal_and_correlated_as_written():
    count, draws = 5, torch.Generator().manual_seed(1)
    axes = torch.randn(2, 200_000, generator=draws, dtype=torch.float64)
    pairs = torch.tensor(entangled_coefficients([1 / count] * count), dtype=torch.float64)
    noise = pairs @ axes
    assert float(noise.sum(dim=0).abs().max()) < 1e-12
    assert noise.std(dim=1).tolist() == pytest.approx([1.0] * count, rel=0.01)
    correlations = torch.corrcoef(noise)
    for i in range(count):
        for j in range(count):
            assert float(correlations[i, j]) == pytest.approx(
                math.cos(2 * math.pi * (i - j) / count), abs=0.01
            )


@pytest.mark.parametrize("shares", [[], [1.0], [0.5, 0.5, 0.0]])
def test_one_worker_cannot_cancel_itself(shares):
    with pytest.raises(PreconditionError, match="at least 2 workers with shares above 0"):
        entangled_coefficients(shares)


# -- privacy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "rounds", "delta"), [(1.0, 1, 1e-5), (4.0, 30, 1e-3), (0.7, 200, 1e-6)])
def test_opacus_gives_what_the_closed_form_gives_where_everybody_takes_part(sigma, rounds, delta):
    pytest.importorskip("opacus", reason="extra privacy")
    rdp = [rounds * order / (2 * sigma**2) for order in RDP_ORDERS]
    by_hand = min(
        value - (math.log(delta) + math.log(order)) / (order - 1) + math.log((order - 1) / order)
        for order, value in zip(RDP_ORDERS, rdp, strict=True)
    )
    spent = privacy_spent(sample_rate=1.0, noise_multiplier=sigma, rounds=rounds, delta=delta)
    assert spent == pytest.approx(by_hand, rel=1e-9)
    assert epsilon_from_rdp(
        RDP_ORDERS, [gaussian_rdp(a, sigma, rounds=rounds) for a in RDP_ORDERS], delta
    ) == (pytest.approx(by_hand, rel=1e-12))


def test_a_sampled_mechanism_spends_what_its_integral_says():
    """At a whole order α the divergence of the sampled mechanism is a finite sum (Mironov et al. 2019, "
    "sec. 3.3)."""
    pytest.importorskip("opacus", reason="extra privacy")
    q, sigma, rounds, delta = 0.2, 1.1, 50, 1e-5

    def rdp(alpha: int) -> float:
        terms = [
            math.comb(alpha, k) * (1 - q) ** (alpha - k) * q**k * math.exp((k * k - k) / (2 * sigma**2))
            for k in range(alpha + 1)
        ]
        return math.log(math.fsum(terms)) / (alpha - 1)

    orders = list(range(2, 20))
    whole = epsilon_from_rdp(orders, [rounds * rdp(alpha) for alpha in orders], delta)
    spent = privacy_spent(sample_rate=q, noise_multiplier=sigma, rounds=rounds, delta=delta)
    # Opacus looks between the whole orders too, so it can only find less, and not by much.
    assert spent <= whole + 1e-9
    assert spent == pytest.approx(whole, rel=0.02)
    everybody = privacy_spent(sample_rate=1.0, noise_multiplier=sigma, rounds=rounds, delta=delta)
    assert spent < 0.5 * everybody


def test_nothing_done_spends_nothing_and_no_noise_all():
    assert privacy_spent(sample_rate=1.0, noise_multiplier=1.0, rounds=0, delta=1e-5) == 0.0
    assert privacy_spent(sample_rate=1.0, noise_multiplier=0.0, rounds=1, delta=1e-5) == math.inf


def test_importing_the_mathematics_does_not_import_opacus():
    import subprocess
    import sys

    code = "import sys, hqde.quantum, hqde.rounds; sys.exit('opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
