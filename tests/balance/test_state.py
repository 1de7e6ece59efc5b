"""What balancers remember: robust, complete, and the same after JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.balance import BalanceState, Timing
from hqde.balance.state import WINDOW
from hqde.errors import PreconditionError

timings = st.builds(
    Timing,
    num_samples=st.integers(0, 10_000),
    seconds=st.floats(1e-4, 1e4),
    load=st.floats(0, 1),
)
rounds_of_timings = st.lists(st.dictionaries(st.integers(0, 5), timings, max_size=6), max_size=8)


def observed(*seconds: float, load: float = 0.0) -> BalanceState:
    """Worker 0 after rounds of one sample each."""
    state = BalanceState()
    for took in seconds:
        state = state.observe({0: Timing(1, took, load)})
    return state


@given(rounds=rounds_of_timings, turn=st.integers(0, 100))
def test_json_and_back_is_the_same_state(rounds, turn):
    state = BalanceState(next_worker=turn)
    for timings in rounds:
        state = state.observe(timings)
    assert BalanceState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_numpy_numbers_become_json_as_well():
    state = BalanceState().observe({0: Timing(np.int64(3), np.float64(0.1), np.float32(0.5))})
    assert BalanceState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_estimates_by_hand():
    # one timing counts fully; two give the geometric mean √(1·4) = 2; three the middle one
    assert observed(4.0).seconds_per_sample(1) == pytest.approx([4.0])
    assert observed(1.0, 4.0).seconds_per_sample(1) == pytest.approx([2.0])
    assert observed(1.0, 9.0, 4.0).seconds_per_sample(1) == pytest.approx([4.0])


def test_before_any_timing_all_take_one_second_and_newcomers_take_the_median_of_the_known():
    assert BalanceState().seconds_per_sample(2).tolist() == [1.0, 1.0]
    state = BalanceState().observe({0: Timing(1, 1.0), 1: Timing(1, 3.0), 3: Timing(1, 8.0)})
    assert state.seconds_per_sample(5) == pytest.approx([1.0, 3.0, 3.0, 8.0, 3.0])


def test_the_load_is_taken_out_of_a_timing_and_put_back_into_the_prediction():
    state = observed(2.0, load=0.5)  # would have been 1 s on an idle node
    assert state.seconds_per_sample(1) == pytest.approx([2.0])
    assert state.observe({0: Timing(0, 1.0, load=0.0)}).seconds_per_sample(1) == pytest.approx([1.0])
    # a load counts up to one half, so that a wrong reading is wrong by a factor of 2 at most
    assert state.observe({0: Timing(0, 1.0, load=1.0)}).seconds_per_sample(1) == pytest.approx([2.0])


@given(load=st.floats(0, 1), seconds=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_a_load_that_stays_the_same_changes_nothing(load, seconds):
    loaded, idle = observed(*seconds, load=load), observed(*seconds)
    assert loaded.seconds_per_sample(1) == pytest.approx(idle.seconds_per_sample(1))


@given(usual=st.lists(st.floats(0.5, 2.0), min_size=2, max_size=9), wild=st.floats(1e-6, 1e6))
def test_one_wild_timing_leaves_the_estimate_within_the_others(usual, wild):
    estimate = observed(*usual, wild).seconds_per_sample(1)[0]
    recent = usual[-(WINDOW - 1) :]
    assert min(recent) * (1 - 1e-9) <= estimate <= max(recent) * (1 + 1e-9)


def test_a_lasting_change_is_taken_up_after_three_rounds():
    before = [1.0] * WINDOW
    assert observed(*before, 3.0, 3.0).seconds_per_sample(1) == pytest.approx([1.0])
    assert observed(*before, 3.0, 3.0, 3.0).seconds_per_sample(1) == pytest.approx([3.0])


def test_missing_workers_keep_their_estimate_and_states_are_not_changed():
    state = BalanceState().observe({0: Timing(10, 1.0), 1: Timing(10, 2.0)})
    later = state.observe({0: Timing(10, 5.0)})
    assert later.paces[1] == state.paces[1] == (0.2,)
    assert state.paces[0] == (0.1,)
    assert later.observe({}) == later


def test_no_samples_say_nothing_about_speed():
    assert BalanceState().observe({1: Timing(0, 3.0, load=0.25)}) == BalanceState(
        paces=((), ()), loads=(0.0, 0.25)
    )


def test_a_forgotten_worker_is_a_newcomer():
    state = BalanceState().observe({0: Timing(1, 1.0), 1: Timing(1, 9.0, load=0.5)}).forget(1)
    assert state.seconds_per_sample(2).tolist() == [1.0, 1.0]
    assert state.free(2).tolist() == [1.0, 1.0]
    assert state.forget(7) == state


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_must_be_above_zero_and_finite(seconds):
    with pytest.raises(PreconditionError, match="finite time above 0, got 5 samples"):
        Timing(5, seconds)


def test_other_numbers_out_of_range_are_refused():
    with pytest.raises(PreconditionError, match="got -1 samples"):
        Timing(-1, 1.0)
    with pytest.raises(PreconditionError, match="got 35; divide percents by 100"):
        Timing(1, 1.0, load=35)
    with pytest.raises(PreconditionError, match="worker -1"):
        BalanceState().observe({-1: Timing(1, 1.0)})


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"next_worker": 0, "paces": [], "loads": [], "more": 1},
        {"next_worker": -1, "paces": [], "loads": []},
        {"next_worker": 0, "paces": [[1.0]], "loads": []},
        {"next_worker": 0, "paces": [[0.0]], "loads": [0.0]},
        {"next_worker": 0, "paces": [["a"]], "loads": [0.0]},
        {"next_worker": 0, "paces": [1.0], "loads": [0.0]},
        {"next_worker": 0, "paces": [[]], "loads": [float("nan")]},
    ],
)
def test_a_saved_state_that_no_balancer_wrote_is_refused(saved):
    with pytest.raises(PreconditionError, match="balancer"):
        BalanceState.from_dict(saved)
