"""A group's end of a round: shares, buffers, counters, and what a refused update must not change."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hqde.aggregation import Adaptive, Decision, FedAvg, Mean, Momentum, Rule, Update
from hqde.backends import LocalBackend
from hqde.rounds.commit import Commit, average_groups, commit_group, shares_of
from hqde.weights import Layout, Weights

LAYOUT = Layout.of(nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)))
CUT, SIZE = LAYOUT.num_parameters, LAYOUT.size  # 8 parameters, then mean and variance of 2 channels
BASE = Weights(torch.arange(float(SIZE)), torch.tensor([10]))


def make_update(worker_id: int, delta: Tensor, samples: int = 10, *, counter: int = 11, **changes) -> Update:
    plain = Update(
        worker_id, 3, 0, delta, torch.tensor([counter]), samples, 0.5, 0.9, 1e-3, 1.0, 0.1
    )  # fmt: skip
    return replace(plain, **changes)


def commit(*updates: Update, server=None, rule=None, state=None, base: Weights = BASE) -> Commit:
    server = server or FedAvg()
    return commit_group(
        updates,
        round_index=3,
        base=base,
        server_state=server.init(base.vector[:CUT]) if state is None else state,
        layout=LAYOUT,
        rule=rule or Mean(),
        server=server,
        backend=LocalBackend(),
    )


def constant(value: float) -> Tensor:
    return torch.full((SIZE,), value)


def test_the_layout_is_the_one_the_numbers_here_are_for():
    assert (CUT, SIZE, LAYOUT.num_integers) == (8, 12, 1)


def test_shares_are_the_engine_s_sample_counts():
    found = commit(make_update(0, constant(1.0), 10), make_update(1, constant(5.0), 30))
    # (10·1 + 30·5) / 40 = 4
    assert torch.equal(found.weights.vector, BASE.vector + 4.0)
    assert found.num_samples == 40
    assert found.rejected == ()


@pytest.mark.parametrize(
    "server",
    [FedAvg(0.5), Momentum(0.7, 0.9), Momentum(0.7, 0.9, nesterov=True), Adaptive("adam"), Adaptive("yogi")],
    ids=repr,
)
def test_buffers_take_the_plain_average_whatever_the_server_optimizer(server):
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randn(SIZE, generator=draws) for _ in range(2)]
    state = None
    base = BASE
    for _ in range(2):  # in the second round the momentum of the first is at work
        found = commit(
            make_update(0, rows[0], 10), make_update(1, rows[1], 30), server=server, state=state, base=base
        )
        mean = 0.25 * rows[0] + 0.75 * rows[1]
        torch.testing.assert_close(found.weights.vector[CUT:], (base.vector + mean)[CUT:])
        step, expected_state = server.update(mean[:CUT], state or server.init(base.vector[:CUT]))
        torch.testing.assert_close(found.weights.vector[:CUT], base.vector[:CUT] + step)
        assert not torch.allclose(found.weights.vector[:CUT], (base.vector + mean)[:CUT])
        assert all(value.shape == (CUT,) for value in found.server.values())
        assert found.server.keys() == expected_state.keys()
        state, base = found.server, found.weights


def test_counters_take_the_maximum():
    found = commit(make_update(0, constant(0.0), counter=14), make_update(1, constant(0.0), counter=12))
    assert found.weights.integers.tolist() == [14]


BAD = {
    "NaN": {"delta": torch.full((SIZE,), math.nan)},
    "infinite": {"delta": torch.full((SIZE,), math.inf)},
    "short": {"delta": torch.zeros(SIZE - 1)},
    "stale": {"round_index": 2},
    "of NaN loss": {"loss": math.nan},
    "a duplicate": {"worker_id": 0, "attempt": 1},
    "of float counters": {"integers": torch.zeros(1)},
}


@pytest.mark.parametrize("fault", BAD)
def test_a_refused_update_changes_nothing_but_the_list_of_refusals(fault):
    good = [make_update(0, constant(1.0), 10), make_update(1, constant(2.0), 20)]
    bad = replace(make_update(2, constant(1e6), 1000, counter=99), **BAD[fault])
    found, expected = commit(*good, bad, server=Momentum()), commit(*good, server=Momentum())
    assert torch.equal(found.weights.vector, expected.weights.vector)
    assert torch.equal(found.weights.integers, expected.weights.integers)
    assert torch.equal(found.server["momentum"], expected.server["momentum"])
    assert found.num_samples == expected.num_samples == 30
    assert [rejection.worker_id for rejection in found.rejected] == [bad.worker_id]


def test_a_worker_without_samples_neither_counts_nor_is_refused():
    idle = make_update(1, constant(9.0), 0, counter=99, loss=math.nan)
    found = commit(make_update(0, constant(1.0), 10), idle)
    assert torch.equal(found.weights.vector, BASE.vector + 1.0)
    assert (found.num_samples, found.rejected) == (10, ())
    assert found.weights.integers.tolist() == [11]


@pytest.mark.parametrize(
    "updates",
    [(), (make_update(0, constant(math.nan)),), (make_update(0, constant(1.0), 0, loss=math.nan),)],
    ids=["none", "refused", "idle"],
)
def test_without_a_usable_update_the_group_keeps_what_it_has(updates):
    state = {"momentum": torch.ones(CUT)}
    found = commit(*updates, server=Momentum(), state=state)
    assert found.weights is BASE
    assert found.server is state
    assert found.num_samples == 0


@settings(deadline=None)
@given(samples=st.lists(st.integers(1, 100), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_arrival_does_not_change_a_bit(samples, seed):
    draws = torch.Generator().manual_seed(seed)
    updates = [
        make_update(worker, torch.randn(SIZE, generator=draws), count) for worker, count in enumerate(samples)
    ]
    shuffled = list(updates)
    random.Random(seed).shuffle(shuffled)
    one, other = commit(*updates, server=Momentum()), commit(*shuffled, server=Momentum())
    assert torch.equal(one.weights.vector, other.weights.vector)


def test_nothing_that_is_given_is_changed():
    update, state = make_update(0, constant(1.0)), {"momentum": torch.ones(CUT)}
    commit(update, server=Momentum(), state=state)
    assert torch.equal(BASE.vector, torch.arange(float(SIZE)))
    assert torch.equal(BASE.integers, torch.tensor([10]))
    assert torch.equal(state["momentum"], torch.ones(CUT))
    assert torch.equal(update.delta, constant(1.0))


@dataclass(frozen=True)
class DropsTheLast(Rule):
    """A rule that leaves out its last row, and says so."""

    basis = "columns"
    name = "drops_the_last"

    def decide(self, gram, shares):
        return Decision(rejected={len(shares) - 1: "it stands last"})

    def combine(self, rows, decision):
        return torch.stack(list(rows[:-1])).mean(0)


def test_what_a_rule_leaves_out_is_reported_by_worker():
    updates = [make_update(worker, constant(float(worker))) for worker in (7, 4, 5)]
    found = commit(*updates, rule=DropsTheLast())
    assert torch.equal(found.weights.vector, BASE.vector + 4.5)
    assert [(r.worker_id, r.reason) for r in found.left_out] == [(7, "it stands last")]


# -- groups with each other --------------------------------------------------------------------------------


def group(value: float, samples: int, counter: int = 1) -> Commit:
    return Commit(Weights(torch.tensor([value, -value]), torch.tensor([counter])), {}, samples, ())


def test_groups_are_averaged_by_their_samples():
    found = average_groups([group(1.0, 10, 3), group(5.0, 30, 7)])
    assert found.vector.tolist() == [4.0, -4.0]
    assert found.integers.tolist() == [7]


def test_a_group_that_was_skipped_takes_the_others_average():
    assert average_groups([group(1.0, 0), group(5.0, 30), group(7.0, 30)]).vector.tolist() == [6.0, -6.0]


def test_when_all_were_skipped_groups_count_alike():
    assert average_groups([group(1.0, 0), group(5.0, 0)]).vector.tolist() == [3.0, -3.0]


def test_equal_groups_stay_what_they_are_bit_for_bit():
    value = 0.1 + 2.0**-20
    found = average_groups([group(value, 1), group(value, 2), group(value, 4)])
    assert torch.equal(found.vector, torch.tensor([value, -value]))


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5),
    samples=st.lists(st.integers(0, 50), min_size=5, max_size=5),
)
def test_the_average_is_the_float64_one(values, samples):
    counts = samples[: len(values)]
    weights = counts if any(counts) else [1] * len(values)
    expected = math.fsum(v * n for v, n in zip(values, weights, strict=True)) / sum(weights)
    found = average_groups([group(v, n) for v, n in zip(values, counts, strict=True)])
    bound = 1e-6 * (max(abs(v) for v in values) + 1)
    assert found.vector.tolist() == pytest.approx([expected, -expected], abs=bound)


@given(samples=st.lists(st.integers(0, 10**9), min_size=1, max_size=8).filter(any))
def test_shares_are_proportions_in_float64(samples):
    found = shares_of(samples)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([n / sum(samples) for n in samples])
    assert float(found.sum()) == pytest.approx(1.0)
