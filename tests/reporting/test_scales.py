"""Ticks, ranges, thinning and numbers for people."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.reporting.scales import (
    Scale,
    bytes_text,
    linear_ticks,
    log_ticks,
    seconds_text,
    short,
    span,
    thin,
    worth_log,
)

values = st.floats(-1e6, 1e6).map(lambda v: round(v, 3))


@settings(deadline=None)
@given(values, st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_few_rising_and_inside(low: float, width: float, count: int) -> None:
    high = low + width
    ticks = linear_ticks(low, high, count)
    slack = 1e-6 * width + 1e-9 * abs(low)
    assert 1 <= len(ticks) <= 2 * count + 1
    assert all(a < b for a, b in pairwise(ticks))
    assert all(low - slack <= tick <= high + slack for tick in ticks)


@settings(deadline=None)
@given(st.floats(1e-6, 1e3), st.floats(1.5, 1e6))
def test_log_ticks_are_few_rising_and_inside(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert len(ticks) <= 9
    assert all(a < b for a, b in pairwise(ticks))
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), values), max_size=20))
def test_a_span_is_never_empty_and_holds_all(found: list[float | None]) -> None:
    low, high = span(found)
    assert low < high
    assert all(low <= value <= high for value in found if value is not None)


def test_a_span_does_not_cross_its_floor() -> None:
    assert span([0.1, 2.0], pad=0.5, floor=0.0)[0] == 0.0
    assert span([-1.0, 2.0], pad=0.0, floor=0.0)[0] == -1.0


def test_a_log_scale_puts_equal_ratios_at_equal_distances() -> None:
    scale = Scale(0.01, 100.0, start=0.0, end=40.0, log=True)
    assert [scale(v) for v in (0.01, 0.1, 1.0, 10.0, 100.0)] == pytest.approx([0, 10, 20, 30, 40])


def test_worth_log_needs_positive_values_that_reach_far() -> None:
    assert worth_log([0.01, 5.0])
    assert not worth_log([1.0, 2.0])
    assert not worth_log([0.0, 2.0])
    assert not worth_log([None])


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=700), st.integers(1, 200))
def test_thinning_keeps_the_count_small_and_the_mean(found: list[float], limit: int) -> None:
    points = [(float(i), v) for i, v in enumerate(found)]
    thinned = thin(points, limit)
    assert len(thinned) <= limit or len(thinned) == len(points) <= limit
    size = math.ceil(len(points) / limit)
    if len(points) % size == 0:  # equal buckets
        mean = sum(y for _, y in thinned if y is not None) / len(thinned)
        assert mean == pytest.approx(
            sum(found) / len(found), abs=1e-6 * max(map(abs, found), default=1) + 1e-9
        )


@pytest.mark.parametrize(
    ("value", "words"),
    [(999.6, "1,000"), (0.5, "0.5"), (-0.25, "−0.25"), (1e-3, "0.001"), (2.5e9, "2.5e9"), (100.0, "100")],
)
def test_short_numbers(value: float, words: str) -> None:
    assert short(value) == words


@settings(deadline=None)
@given(st.floats(1e-12, 1e12))
def test_short_numbers_read_back_to_three_digits(value: float) -> None:
    assert float(short(value).replace(",", "")) == pytest.approx(value, rel=0.006)


def test_durations_and_sizes() -> None:
    assert [seconds_text(v) for v in (0, 59.4, 60, 3599, 3600)] == [
        "0 ms",
        "59.4 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
    ]
    assert [bytes_text(v) for v in (0, 999, 1000, 1.5e9)] == ["0 B", "999 B", "1 kB", "1.5 GB"]
