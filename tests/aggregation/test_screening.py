"""Outlier scores, reliability, norm bound and held-out improvement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqde.aggregation import (
    HeldOutImprovement,
    NormBound,
    Reliability,
    SignFlip,
    agreement,
    gram_matrix,
    gram_parts,
    outlier_scores,
)
from hqde.errors import ConfigError, PreconditionError


def gram_of(rows: torch.Tensor) -> torch.Tensor:
    return gram_matrix(gram_parts(rows))


def honest_rows(count: int = 8) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(40, generator=draws) + 0.3 * torch.randn(count, 40, generator=draws)


def test_cosine_and_euclidean_scores_are_those_of_a_loop():
    rows = torch.cat([honest_rows(), SignFlip(3.0)(honest_rows(), 2)])
    found, x = outlier_scores(gram_of(rows)), rows.double().numpy()
    cosine, away = [], []
    for i in range(len(x)):
        others = np.delete(x, i, axis=0).mean(axis=0)
        cosine.append(1 - x[i] @ others / np.linalg.norm(x[i]) / np.linalg.norm(others))
        away.append(np.linalg.norm(x[i] - others))
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-5)
    np.testing.assert_allclose(found.euclidean, np.array(away) / np.sort(away)[4], rtol=1e-5)


def test_each_score_sets_attackers_apart():
    rows = torch.cat([SignFlip(3.0)(honest_rows(), 2), honest_rows()])
    found = outlier_scores(gram_of(rows))
    for score in (found.mad, found.cosine, found.euclidean):
        assert float(score[:2].min()) > 1.2 * float(score[2:].max())
    assert float(found.mad[:2].min()) > 5.0


@pytest.mark.parametrize("rows", [torch.ones(5, 3), torch.zeros(5, 3), torch.ones(1, 3), torch.zeros(1, 3)])
def test_rows_that_are_alike_are_no_outliers(rows):
    gram = gram_of(rows)
    found = outlier_scores(gram)
    assert found.mad.tolist() == [0.0] * len(rows)
    assert found.euclidean.max() - found.euclidean.min() < 1e-9
    assert torch.isfinite(found.cosine).all()
    assert agreement(gram, torch.full((len(rows),), 1 / len(rows))).tolist() == [1.0] * len(rows)


def test_agreement_falls_with_the_distance_from_the_majority():
    rows = torch.cat([honest_rows(), 10 * honest_rows(1), 100 * honest_rows(1)])
    found = agreement(gram_of(rows), torch.full((10,), 0.1, dtype=torch.float64))
    assert (found[:8] == 1.0).all()
    assert 1.0 > float(found[8]) > 5 * float(found[9]) > 0.0


def test_reliability_by_hand():
    reliability = Reliability(prior_good=1.0, prior_bad=1.0, memory=0.5)
    state = reliability.init(3)
    assert reliability.scores(state).tolist() == [0.5, 0.5, 0.5]
    state = reliability.update({0: 1.0, 1: 0.25}, state)
    state = reliability.update({0: 1.0, 1: 0.0}, state)
    # worker 0: good 1.5, bad 0; worker 1: good 0.125, bad 0.5 · 0.75 + 1; worker 2 was not there
    assert state["good"].tolist() == [1.5, 0.125, 0.0]
    assert state["bad"].tolist() == [0.0, 1.375, 0.0]
    assert reliability.scores(state).tolist() == pytest.approx([2.5 / 3.5, 1.125 / 3.5, 0.5])


def test_what_was_bad_is_forgiven():
    reliability = Reliability()
    state = reliability.init(1)
    for _ in range(20):
        state = reliability.update({0: 0.0}, state)
    assert float(reliability.scores(state)[0]) < 0.35
    rounds = 0
    while float(reliability.scores(state)[0]) < 0.8:
        state, rounds = reliability.update({0: 1.0}, state), rounds + 1
    assert rounds < 15


@given(
    history=st.lists(
        st.dictionaries(st.integers(0, 5), st.floats(0, 1), min_size=1, max_size=6), min_size=0, max_size=12
    ),
    now=st.dictionaries(st.integers(0, 5), st.floats(0, 1), min_size=1, max_size=6),
)
def test_nobody_is_left_out_when_all_agree_and_never_a_majority(history, now):
    reliability = Reliability()
    state = reliability.init(6)
    for agreements in history:
        before = {key: value.clone() for key, value in state.items()}
        after = reliability.update(agreements, state)
        assert all(torch.equal(state[key], before[key]) for key in state)
        state = after
    scores = reliability.scores(state)
    assert ((scores > 0) & (scores < 1)).all()
    assert reliability.excluded(dict.fromkeys(now, 1.0), reliability.scores(state)) == {}
    assert 2 * len(reliability.excluded(now, reliability.scores(state))) < len(now)
    shares = reliability.shares(torch.full((len(now),), 1 / len(now)), reliability.scores(state)[sorted(now)])
    assert float(shares.sum()) == pytest.approx(1.0)


def test_equal_scores_leave_shares_alone_and_a_bad_history_lowers_them():
    reliability, given_shares = Reliability(), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    state = reliability.init(3)
    torch.testing.assert_close(reliability.shares(given_shares, reliability.scores(state)), given_shares)
    for _ in range(12):
        state = reliability.update({0: 0.0, 1: 1.0, 2: 1.0}, state)
    assert float(reliability.shares(given_shares, reliability.scores(state))[0]) < 0.3
    assert list(reliability.excluded({0: 0.2, 1: 1.0, 2: 1.0}, reliability.scores(state))) == [0]


def test_the_norm_bound_follows_the_run_and_outlives_a_bad_round():
    bound = NormBound(factor=3.0, window=4)
    state = bound.init()
    for norm in (8.0, 4.0, 2.0, 1.0, 1.0, 1.0):
        refused, state = bound.judge(torch.tensor([norm, 1.1 * norm, 0.9 * norm, 20 * norm]), state)
        assert list(refused) == [3]
    assert len(state["medians"]) == 4
    refused, after = bound.judge(torch.tensor([50.0, 60.0, 1.0]), state)  # most are bad, this once
    assert list(refused) == [0, 1]
    assert len(state["medians"]) == len(after["medians"]) == 4


def test_the_norm_bound_refuses_nobody_where_there_is_nothing_to_compare():
    bound = NormBound()
    assert bound.judge(torch.zeros(0), bound.init())[0] == {}
    assert bound.judge(torch.tensor([7.0]), bound.init())[0] == {}
    assert bound.judge(torch.tensor([0.0, 0.0, 1.0]), bound.init())[0] == {}


def test_held_out_improvement_is_told_apart_and_says_that_it_uses_server_data():
    assert HeldOutImprovement().judge(1.0, [1.0, 1.1, math.nan, 0.2]) == {
        1: "its delta raises the held-out loss from 1 to 1.1",
        2: "its delta raises the held-out loss from 1 to nan",
    }
    assert (HeldOutImprovement.uses_server_data, NormBound.uses_server_data) == (True, False)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: NormBound(factor=1.0), ConfigError),
        (lambda: NormBound(window=-1), ConfigError),
        (lambda: NormBound().judge(torch.tensor([math.nan]), NormBound().init()), PreconditionError),
        (lambda: HeldOutImprovement(max_increase=-1.0), ConfigError),
        (lambda: HeldOutImprovement().judge(math.nan, []), PreconditionError),
        (lambda: Reliability(prior_bad=0.0), ConfigError),
        (lambda: Reliability(memory=1.0), ConfigError),
        (lambda: Reliability().update({3: 1.0}, Reliability().init(3)), PreconditionError),
        (lambda: Reliability().update({0: 1.5}, Reliability().init(3)), PreconditionError),
    ],
)
def test_values_out_of_range_are_refused(make, error):
    with pytest.raises(error):
        make()
