"""Shares to whole samples: nothing lost, nobody without."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.balance import split_by_shares
from hqde.balance.splitting import shares_with_floor
from hqde.errors import PreconditionError

speeds = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40).map(np.array)


@given(total=st.integers(0, 10**9), speeds=speeds)
def test_counts_sum_to_the_total_follow_the_shares_and_leave_nobody_out(total, speeds):
    shares = speeds / speeds.sum()
    counts = split_by_shares(total, shares)
    assert sum(counts) == total
    assert min(counts) >= (1 if total >= len(shares) else 0)
    if min(total * shares) >= 1:
        assert np.abs(counts - total * shares).max() < 1 + 1e-6


@given(total=st.integers(0, 10**7), n=st.integers(1, 300))
def test_equal_shares_differ_by_one_and_the_first_workers_get_it(total, n):
    sizes = [total // n + (worker < total % n) for worker in range(n)]
    assert split_by_shares(total, [1 / n] * n) == sizes


@given(total=st.integers(0, 200), speeds=speeds)
def test_a_larger_share_never_gets_fewer(total, speeds):
    counts = split_by_shares(total, speeds / speeds.sum())
    for one, other in combinations(range(len(speeds)), 2):
        if abs(speeds[one] / speeds[other] - 1) > 1e-6:
            assert (counts[one] - counts[other]) * (speeds[one] - speeds[other]) >= 0


def test_splits_by_hand():
    assert split_by_shares(10, [0.55, 0.25, 0.2]) == [6, 2, 2]  # 5.5, 2.5, 2: the tie goes to worker 0
    assert split_by_shares(5, [0.1, 0.2, 0.3, 0.4]) == [1, 1, 1, 2]  # 0.5, 1, 1.5, 2: likewise
    assert split_by_shares(12, [0.1, 0.2, 0.7]) == [1, 3, 8]  # 1.2, 2.4, 8.4: the tie goes to worker 1
    assert split_by_shares(100, [0.999, 0.001]) == [99, 1]
    assert split_by_shares(6, [0.5, 0.49, 0.01]) == [3, 2, 1]  # 3, 2.94, 0.06: worker 1 was rounded up
    assert split_by_shares(1, [0.2, 0.8]) == [0, 1]
    assert split_by_shares(0, [1.0]) == [0]


@pytest.mark.parametrize(
    ("total", "shares", "message"),
    [
        (-1, [1.0], "at least 0, got -1"),
        (5, [], "finite fractions"),
        (5, [0.5, float("nan")], "finite fractions"),
        (5, [1.5, -0.5], "finite fractions"),
        (5, [[0.5, 0.5]], "finite fractions"),
        (5, [0.5, 0.25], "sum to 1, got 0.75"),
    ],
)
def test_what_are_no_shares_is_refused(total, shares, message):
    with pytest.raises(PreconditionError, match=message):
        split_by_shares(total, shares)


@given(speeds=speeds, floor=st.floats(0.001, 0.999))
def test_shares_sum_to_one_and_keep_the_floor(speeds, floor):
    shares = shares_with_floor(speeds, floor)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= floor / len(speeds) * (1 - 1e-12)).all()


@given(speeds=speeds)
def test_whoever_stands_above_the_floor_is_served_in_proportion(speeds):
    shares = shares_with_floor(speeds, 0.2)
    above = shares > 0.2 / len(speeds) * (1 + 1e-9)
    assert shares[above] / shares[above].sum() == pytest.approx(speeds[above] / speeds[above].sum())
