"""Temperature: against a grid, closed forms, and the cases in which there is nothing to fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from hqde.ensemble import apply_temperature, fit_temperature
from hqde.errors import NonFiniteError, PreconditionError


def sample(seed: int, *, n: int = 200, c: int = 4, sharpness: float = 1.0):
    """Logits, probabilities ``softmax(sharpness · logits)``, and targets drawn from ``softmax(logits)``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator, dtype=torch.float64) * 1.5
    targets = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator).squeeze(1)
    return torch.softmax(sharpness * logits, dim=1).to(torch.float32), targets


def oracle_nll(probs: torch.Tensor, targets: torch.Tensor, temperature: float) -> float:
    floor = np.finfo(np.float32).tiny  # the documented floor of the logarithm
    logs = log_softmax(np.log(np.maximum(probs.double().numpy(), floor)) / temperature, axis=1)
    return float(-logs[np.arange(len(logs)), targets.numpy()].mean())


def oracle_objective(probs: torch.Tensor, targets: torch.Tensor, temperature: float) -> float:
    prior = math.log(temperature) ** 2 / (2 * 0.5**2)
    return oracle_nll(probs, targets, temperature) + prior / len(targets)


def test_the_oracle_is_scikit_learns_log_loss():
    probs, targets = sample(3)
    exact = probs.double().numpy()
    expected = log_loss(targets.numpy(), exact / exact.sum(axis=1, keepdims=True), labels=range(4))
    assert oracle_nll(probs, targets, 1.0) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sharpness=st.floats(0.2, 8.0))
def test_it_is_the_minimum_found_by_a_grid(seed, sharpness):
    probs, targets = sample(seed, sharpness=sharpness)
    fitted = fit_temperature(probs, targets)
    assert 0.05 <= fitted <= 20.0
    best = min(oracle_objective(probs, targets, float(t)) for t in torch.logspace(-1.3, 1.3, 200))
    assert oracle_objective(probs, targets, fitted) <= best + 1e-6
    assert oracle_nll(probs, targets, fitted) <= oracle_nll(probs, targets, 1.0) + 1e-12
    assert fitted == fit_temperature(probs, targets)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.01, 1.0, 30.0, 400.0]), n=st.integers(1, 30))
def test_it_never_raises_the_nll_whatever_the_rows(seed, spread, n):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(torch.randn(n, 5, generator=generator) * spread, dim=1)
    targets = torch.randint(0, 5, (n,), generator=generator)
    fitted = fit_temperature(probs, targets)
    assert 0.05 <= fitted <= 20.0

    def nll(p):
        return -p.gather(1, targets[:, None]).clamp_min(torch.finfo(p.dtype).tiny).double().log().mean()

    assert nll(apply_temperature(probs, fitted)) <= nll(probs)


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 4.0])
def test_it_finds_the_sharpness_that_was_put_in(sharpness):
    probs, targets = sample(0, n=20_000, sharpness=sharpness)
    assert fit_temperature(probs, targets) == pytest.approx(sharpness, rel=0.05)


def test_two_classes_in_closed_form():
    # Always 0.99 sure and right in 8 of 10 rows: σ(logit(0.99) / T) = 0.8, with many rows against the prior.
    probs = torch.tensor([[0.99, 0.01]], dtype=torch.float64).repeat(100_000, 1)
    targets = torch.tensor([0] * 80_000 + [1] * 20_000)
    assert fit_temperature(probs, targets) == pytest.approx(math.log(99) / math.log(4), rel=1e-3)


def test_where_nothing_can_be_learnt_it_stays_at_one():
    uniform = torch.full((6, 3), 1 / 3)
    assert fit_temperature(uniform, torch.tensor([0, 1, 2, 0, 1, 2])) == 1.0
    certain = torch.eye(3)
    assert fit_temperature(certain, torch.tensor([0, 1, 2])) == 1.0


def test_a_few_rows_move_it_a_little_and_many_rows_more():
    # Rows that are all right: likelihood alone would run to T = 0; all wrong: to T = infinity.
    few, many = ((torch.tensor([[0.8, 0.2]]).repeat(n, 1), n) for n in (3, 3000))
    sharper = [fit_temperature(probs, torch.zeros(n, dtype=torch.int64)) for probs, n in (few, many)]
    flatter = [fit_temperature(probs, torch.ones(n, dtype=torch.int64)) for probs, n in (few, many)]
    assert 0.05 <= sharper[1] < sharper[0] < 1.0 < flatter[0] < flatter[1] <= 20.0
    assert sharper[0] > 0.6
    assert flatter[0] < 2.5


def test_bad_rows_are_refused():
    probs, targets = sample(2, n=4)
    with pytest.raises(PreconditionError):
        fit_temperature(probs[:0], targets[:0])
    with pytest.raises(PreconditionError):
        fit_temperature(probs, targets[:2])
    with pytest.raises(PreconditionError):
        fit_temperature(probs, targets + 9)
    with pytest.raises(NonFiniteError):
        fit_temperature(probs * float("nan"), targets)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(PreconditionError, match="finite and above 0"):
            apply_temperature(probs, temperature)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), temperature=st.floats(0.05, 20.0), spread=st.sampled_from([1.0, 50.0, 500.0])
)
def test_applying_keeps_the_order_and_gives_distributions(seed, temperature, spread):
    probs = torch.softmax(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * spread, dim=1)
    tempered = apply_temperature(probs, temperature)
    assert torch.isfinite(tempered).all()
    assert (tempered.sum(dim=1) - 1).abs().max() <= 1e-6
    order = probs.argsort(dim=1)
    assert (tempered.gather(1, order).diff(dim=1) >= 0).all()
    assert torch.equal(apply_temperature(probs, 1.0), probs)
    if spread == 1.0:
        powers = probs.double() ** (1 / temperature)
        expected = powers / powers.sum(dim=1, keepdim=True)
        torch.testing.assert_close(tempered.double(), expected, rtol=1e-3, atol=1e-5)


def test_calibrating_an_ensemble_gives_a_new_one_that_shares_its_members(make_ensemble, rows):
    ensemble = make_ensemble()
    sharp = make_ensemble(temperature=0.1)
    targets = torch.multinomial(
        ensemble.predict_proba(rows), 1, generator=torch.Generator().manual_seed(0)
    ).squeeze(1)
    fitted = ensemble.calibrate((rows, targets))
    assert fitted is not ensemble
    assert ensemble.temperature == 1.0
    assert all(a is b for a, b in zip(fitted.members, ensemble.members, strict=True))
    assert fitted.temperature == fit_temperature(ensemble.predict_proba(rows), targets)
    assert fitted.temperature == sharp.calibrate((rows, targets)).temperature  # the old one plays no part
    assert fitted.evaluate((rows, targets)).nll <= ensemble.evaluate((rows, targets)).nll
    assert torch.equal(fitted.predict_members(rows), ensemble.predict_members(rows))
    assert torch.equal(fitted.predict(rows), ensemble.predict(rows))
    again = fitted.with_temperature(1.0)
    assert torch.equal(again.predict_proba(rows), ensemble.predict_proba(rows))
    with pytest.raises(PreconditionError, match="for classification"):
        make_ensemble(loss="mse").calibrate((rows, torch.zeros(len(rows))))
