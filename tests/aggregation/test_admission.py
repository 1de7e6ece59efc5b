"""What gets past admission, and what the reason says when it does not."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.aggregation import Rejection, Update, admit

SIZE, INTEGERS, ROUND = 4, 2, 5


def make_update(worker_id: int = 0, **changes) -> Update:
    sound = Update(
        worker_id=worker_id,
        round_index=ROUND,
        attempt=0,
        delta=torch.arange(float(SIZE)) + worker_id,
        integers=torch.arange(INTEGERS),
        num_samples=8,
        loss=0.5,
        accuracy=0.75,
        learning_rate=1e-3,
        efficiency=1.0,
        seconds=0.1,
    )
    return replace(sound, **changes)


def judge(*updates: Update) -> tuple[list[Update], list[Rejection]]:
    return admit(updates, round_index=ROUND, size=SIZE, num_integers=INTEGERS)


def with_bad(value: float, count: int = 1) -> torch.Tensor:
    delta = torch.zeros(SIZE)
    delta[:count] = value
    return delta


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"delta": with_bad(math.nan)}, "1 of 4 elements of its delta are not finite"),
        ({"delta": with_bad(math.inf, 2)}, "2 of 4 elements of its delta are not finite"),
        ({"delta": with_bad(-math.inf, 4)}, "4 of 4 elements of its delta are not finite"),
        (
            {"delta": torch.tensor([math.inf, -math.inf, 0.0, 1.0])},
            "2 of 4 elements of its delta are not finite",
        ),
        ({"delta": torch.zeros(3)}, "its delta is torch.float32 of (3,), expected floating (4,)"),
        ({"delta": torch.zeros(5)}, "its delta is torch.float32 of (5,), expected floating (4,)"),
        ({"delta": torch.zeros(1, 4)}, "its delta is torch.float32 of (1, 4), expected floating (4,)"),
        (
            {"delta": torch.zeros(4, dtype=torch.int64)},
            "its delta is torch.int64 of (4,), expected floating (4,)",
        ),
        (
            {"integers": torch.zeros(1, dtype=torch.int64)},
            "its integer buffers are torch.int64 of (1,), expected torch.int64 (2,)",
        ),
        (
            {"integers": torch.zeros(2)},
            "its integer buffers are torch.float32 of (2,), expected torch.int64 (2,)",
        ),
        ({"round_index": 4}, "its update belongs to round 4, not 5"),
        ({"round_index": 6}, "its update belongs to round 6, not 5"),
        ({"loss": math.nan}, "its training loss is nan"),
        ({"loss": math.inf}, "its training loss is inf"),
    ],
)
def test_an_unsound_update_is_refused_with_the_reason_and_the_others_are_not(changes, reason):
    good, bad = make_update(0), make_update(1, **changes)
    admitted, rejected = judge(bad, good)
    assert admitted == [good]
    assert rejected == [Rejection(1, reason)]


def test_sound_updates_are_admitted_untouched_in_the_order_of_their_workers():
    updates = [make_update(worker) for worker in (3, 0, 2)]
    admitted, rejected = judge(*updates)
    assert admitted == [updates[1], updates[2], updates[0]]
    assert all(any(kept is update for update in updates) for kept in admitted)
    assert rejected == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_delta_is_admitted_and_a_large_sum_is_not_taken_for_a_bad_element(dtype):
    largest = torch.full((SIZE,), torch.finfo(dtype).max, dtype=dtype)  # their sum overflows
    admitted, rejected = judge(make_update(0, delta=largest))
    assert (len(admitted), rejected) == (1, [])


def test_a_worker_without_samples_may_have_no_loss_but_never_a_bad_delta():
    idle = make_update(0, num_samples=0, loss=math.nan, delta=torch.zeros(SIZE))
    broken = make_update(1, num_samples=0, loss=math.nan, delta=with_bad(math.nan))
    admitted, rejected = judge(idle, broken)
    assert admitted == [idle]
    assert [rejection.worker_id for rejection in rejected] == [1]


def test_a_second_update_of_the_same_round_is_refused_the_first_attempt_counts():
    second, first = make_update(0, attempt=1), make_update(0, attempt=0)
    admitted, rejected = judge(second, first)
    assert admitted == [first]
    assert rejected == [Rejection(0, "it handed in a second update for the same round")]


def test_after_an_unsound_first_attempt_the_second_counts():
    broken, repaired = make_update(0, attempt=0, loss=math.nan), make_update(0, attempt=1)
    admitted, rejected = judge(repaired, broken)
    assert admitted == [repaired]
    assert rejected == [Rejection(0, "its training loss is nan")]


@settings(deadline=None)
@given(
    kinds=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["sound", "nan", "stale", "short", "loss"])), max_size=10
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_order_of_arrival_does_not_matter_and_nothing_is_lost(kinds, seed):
    faults = {
        "sound": {},
        "nan": {"delta": with_bad(math.nan)},
        "stale": {"round_index": 4},
        "short": {"delta": torch.zeros(1)},
        "loss": {"loss": math.nan},
    }
    updates = [
        make_update(worker, attempt=attempt, **faults[kind]) for attempt, (worker, kind) in enumerate(kinds)
    ]
    shuffled = list(updates)
    random.Random(seed).shuffle(shuffled)
    admitted, rejected = judge(*updates)
    again, refused = judge(*shuffled)
    assert [id(update) for update in admitted] == [id(update) for update in again]
    assert rejected == refused
    assert len(admitted) + len(rejected) == len(updates)
    assert [update.worker_id for update in admitted] == sorted(
        {worker for worker, kind in kinds if kind == "sound"}
    )


def test_no_updates_are_no_fault():
    assert judge() == ([], [])
