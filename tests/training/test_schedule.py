"""The learning rate: numbers by hand, and what holds for every schedule."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.training import Schedule

fractions = st.floats(0, 1)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.0),
        (0.1, 0.5),  # half of the warm-up
        (0.2, 1.0),
        (0.4, 0.8535533905932737),  # a quarter of the decay: ½ (1 + cos 45°)
        (0.6, 0.5),
        (0.8, 0.1464466094067263),
        (1.0, 0.0),
    ],
)
def test_cosine_by_hand(progress, expected):
    assert Schedule(warmup=0.2).factor(progress) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.25, 0.8535533905932737),  # decays as if the run went on to its end
        (0.4999, 0.5 * (1 + math.cos(math.pi * 0.4999))),
        (0.5, 0.67),
        (0.75, 0.335),
        (1.0, 0.0),
    ],
)
def test_the_restart_by_hand(progress, expected):
    schedule = Schedule(warmup=0.0, restart_at=0.5, restart_level=0.67)
    assert schedule.factor(progress) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 1.0), (1.0, 1.0)]
)
def test_constant_is_constant_after_warm_up_and_never_restarts(progress, expected):
    schedule = Schedule(kind="constant", warmup=0.1, restart_at=0.5, restart_level=0.3)
    assert schedule.factor(progress) == pytest.approx(expected)


def test_without_warm_up_the_run_begins_at_the_peak():
    assert Schedule(warmup=0.0).factor(0.0) == 1.0
    assert Schedule(kind="constant", warmup=0.0).factor(0.0) == 1.0


@given(warmup=st.floats(0, 0.9), left=fractions, right=fractions)
def test_up_during_warm_up_and_down_after_it(warmup, left, right):
    schedule = Schedule(warmup=warmup)
    assume(left < right)
    low, high = schedule.factor(left), schedule.factor(right)
    if right <= warmup:
        assert low <= high
    elif left >= warmup:
        assert low >= high
    assert 0 <= low <= 1
    assert 0 <= high <= 1


@given(restart=st.floats(0.05, 0.95), level=st.floats(0.01, 1), left=fractions, right=fractions)
def test_each_side_of_a_restart_decays_and_the_run_ends_at_zero(restart, level, left, right):
    schedule = Schedule(warmup=0.0, restart_at=restart, restart_level=level)
    assume(left < right)
    if (left < restart) == (right < restart):
        assert schedule.factor(left) >= schedule.factor(right)
    assert schedule.factor(restart) == level
    assert schedule.factor(1.0) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"warmup": 1.0}, "warmup is a fraction"),
        ({"warmup": -0.1}, "warmup is a fraction"),
        ({"warmup": math.nan}, "warmup is a fraction"),
        ({"restart_at": 0.0}, "restart_at is a fraction"),
        ({"restart_at": 1.0}, "restart_at is a fraction"),
        ({"restart_at": math.nan}, "restart_at is a fraction"),
    ],
)
def test_fractions_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Schedule(**settings)
