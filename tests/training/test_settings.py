"""Recipe, diversity, efficiency and device: ranges, spreads, and the seed's formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.training import INITIAL_EFFICIENCY, Diversity, Recipe, resolve_device, update_efficiency


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate must be above 0 and finite"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"weight_decay": math.nan}, "weight_decay must not be negative"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, "momentum must lie"),
        ({"warmup": 1.0}, "warmup is a fraction"),
        ({"restart_level": 0.0}, "restart_level is a fraction"),
        ({"restart_level": 1.1}, "restart_level is a fraction"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie"),
        ({"label_smoothing": -0.1}, "label_smoothing must lie"),
        ({"clip_norm": -1.0}, "clip_norm must be 0"),
        ({"clip_norm": math.nan}, "clip_norm must be 0"),
        ({"optimizer": "adam"}, "optimizer must be one of 'adamw', 'sgd', got 'adam'"),
        ({"schedule": "step"}, "schedule must be one of 'cosine', 'constant', got 'step'"),
        ({"precision": "fp16"}, "precision must be one of 'fp32', 'bf16-mixed', 'fp16-mixed', got 'fp16'"),
        ({"loss": "huber"}, "loss must be one of None, 'cross_entropy', 'mse', 'gaussian_nll', got 'huber'"),
    ],
)
def test_a_recipe_out_of_range_is_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("loss", "task", "expected"),
    [
        (None, "classification", "cross_entropy"),
        (None, "regression", "mse"),
        ("cross_entropy", "classification", "cross_entropy"),
        ("mse", "regression", "mse"),
        ("gaussian_nll", "regression", "gaussian_nll"),
    ],
)
def test_the_loss_for_a_task(loss, task, expected):
    assert Recipe(loss=loss).loss_for(task) == expected


@pytest.mark.parametrize(
    ("loss", "task"),
    [("cross_entropy", "regression"), ("mse", "classification"), ("gaussian_nll", "classification")],
)
def test_a_loss_of_the_other_task_is_refused(loss, task):
    with pytest.raises(ConfigError, match=f"loss '{loss}' does not fit a {task} task"):
        Recipe(loss=loss).loss_for(task)


def test_the_repr_rebuilds_recipe_and_diversity():
    recipe, diversity = Recipe(batch_size=7, optimizer="sgd", loss="mse"), Diversity(bootstrap=True)
    assert eval(repr(recipe)) == recipe
    assert eval(repr(diversity)) == diversity


def test_spreads_by_hand():
    diversity = Diversity(learning_rate_spread=0.2, dropout_spread=0.1)
    assert diversity.learning_rate_factors(5) == pytest.approx((0.8, 0.9, 1.0, 1.1, 1.2))
    assert diversity.learning_rate_factors(2) == pytest.approx((0.8, 1.2))
    assert diversity.learning_rate_factors(1) == (1.0,)
    assert diversity.dropout_rates(0.3, 3) == pytest.approx((0.2, 0.3, 0.4))
    assert diversity.dropout_rates(0.05, 3) == pytest.approx((0.0, 0.05, 0.15))
    assert diversity.dropout_rates(0.88, 3) == pytest.approx((0.78, 0.88, 0.9))
    assert diversity.dropout_rates(0.3, 1) == (0.3,)


@given(spread=st.floats(0, 0.99), base=st.floats(0, 0.9), count=st.integers(1, 20))
def test_spreads_are_even_symmetric_and_within_bounds(spread, base, count):
    diversity = Diversity(learning_rate_spread=spread, dropout_spread=spread)
    factors = diversity.learning_rate_factors(count)
    assert len(factors) == count
    assert sum(factors) == pytest.approx(count)
    assert all(0 < factor < 2 for factor in factors)
    steps = [b - a for a, b in itertools.pairwise(factors)]
    assert steps == pytest.approx([2 * spread / max(1, count - 1)] * (count - 1), abs=1e-12)
    rates = diversity.dropout_rates(base, count)
    assert list(rates) == sorted(rates)
    assert all(0 <= rate <= 0.9 for rate in rates)


@pytest.mark.parametrize("name", ["learning_rate_spread", "dropout_spread"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_spreads_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} must lie in"):
        Diversity(**{name: value})


def seed_score(score: float, loss: float) -> float:
    """The formula of the document that HQDE starts from, word for word."""
    return max(0.1, score * 0.99 + 0.01 * (1.0 / (1.0 + loss)))


@given(losses=st.lists(st.floats(0, 1e6), max_size=60))
def test_the_efficiency_score_is_the_seed_s_on_any_sequence_of_losses(losses):
    ours = theirs = INITIAL_EFFICIENCY
    assert INITIAL_EFFICIENCY == 1.0
    for loss in losses:
        ours, theirs = update_efficiency(ours, loss), seed_score(theirs, loss)
        assert ours == theirs
        assert 0.1 <= ours <= 1.0


def test_the_efficiency_score_by_hand():
    assert update_efficiency(1.0, 0.0) == pytest.approx(1.0)
    assert update_efficiency(1.0, 1.0) == pytest.approx(0.995)
    assert update_efficiency(0.5, 3.0) == pytest.approx(0.4975)
    assert update_efficiency(0.1, 99.0) == 0.1


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_adds_nothing(loss):
    assert update_efficiency(0.5, loss) == 0.495


@pytest.mark.parametrize("loss", [-0.5, -0.999999, -1.0, -20.0])
def test_a_negative_loss_counts_as_zero_so_that_the_score_stays_below_one(loss):
    assert update_efficiency(1.0, loss) == update_efficiency(1.0, 0.0)


def test_devices(monkeypatch):
    assert resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="device 'cuda' is not there: 0 CUDA devices"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="device 'cuda:2' is not there: 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:x"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' is no device; use auto, cpu, cuda or cuda:N"):
        resolve_device(name)
