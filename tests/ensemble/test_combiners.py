"""What holds for every combiner, and what each one computes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hqde.ensemble
from hqde.ensemble import (
    COMBINERS,
    EfficiencyCombiner,
    LogPoolCombiner,
    MeanCombiner,
    MedianCombiner,
    TrimmedMeanCombiner,
    drop_outliers,
    make_combiner,
)
from hqde.errors import ConfigError, NonFiniteError, PreconditionError

VOTES = {"plurality", "weighted_vote"}


@st.composite
def members_and_scores(draw):
    """(m, n, c) probabilities, sharp ones and exact zeros and ones among them, and m scores."""
    m, n, c = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(2, 10))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.1, 3.0, 60.0, 500.0]))
    probs = torch.softmax(torch.randn(m, n, c, generator=generator) * spread, dim=2)
    scores = torch.rand(m, generator=generator) * 0.9 + 0.1
    return probs, scores


@pytest.mark.parametrize("name", sorted(COMBINERS))
class TestEveryCombiner:
    @settings(max_examples=60, deadline=None)
    @given(case=members_and_scores())
    def test_rows_are_distributions(self, name, case):
        probs, scores = case
        before = probs.clone()
        combined = make_combiner(name).combine(probs, scores)
        assert combined.shape == probs.shape[1:]
        assert combined.dtype == probs.dtype
        assert torch.isfinite(combined).all()
        assert (combined >= 0).all()
        assert (combined.sum(dim=1) - 1).abs().max() <= 1e-6
        assert torch.equal(probs, before)

    @settings(max_examples=40, deadline=None)
    @given(case=members_and_scores(), seed=st.integers(0, 1000))
    def test_the_order_of_members_does_not_matter(self, name, case, seed):
        probs, scores = case
        order = torch.randperm(len(probs), generator=torch.Generator().manual_seed(seed))
        combiner = make_combiner(name)
        same = combiner.combine(probs[order], scores[order])
        torch.testing.assert_close(same, combiner.combine(probs, scores), rtol=1e-5, atol=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(case=members_and_scores(), copies=st.integers(1, 5))
    def test_members_that_agree_are_returned(self, name, case, copies):
        member = case[0][0]
        scores = torch.linspace(0.1, 1.0, copies)
        combined = make_combiner(name).combine(member.expand(copies, -1, -1), scores)
        if name in VOTES:
            member = torch.nn.functional.one_hot(member.argmax(dim=1), member.shape[1]).float()
        torch.testing.assert_close(combined, member, rtol=1e-5, atol=1e-6)

    def test_certain_and_contradicting_members_give_no_nan(self, name):
        certain = torch.eye(3).unsqueeze(1)  # each of three members rules out what the others say
        combined = make_combiner(name).combine(certain, torch.full((3,), 0.5))
        torch.testing.assert_close(combined, torch.full((1, 3), 1 / 3))

    def test_no_rows_give_no_rows(self, name):
        assert make_combiner(name).combine(torch.zeros(2, 0, 3), torch.ones(2)).shape == (0, 3)

    def test_bad_shapes_and_numbers_are_refused(self, name):
        combiner = make_combiner(name)
        for probs, scores in (
            (torch.ones(3, 2), torch.ones(3)),
            (torch.ones(3, 2, 2), torch.ones(2)),
            (torch.ones(0, 2, 2), torch.ones(0)),
        ):
            with pytest.raises(PreconditionError, match="one score per member"):
                combiner.combine(probs, scores)
        with pytest.raises(NonFiniteError):
            combiner.combine(torch.full((1, 1, 2), float("nan")), torch.ones(1))
        with pytest.raises(NonFiniteError):
            combiner.combine(torch.full((1, 1, 2), 0.5), torch.tensor([float("inf")]))

    def test_its_repr_rebuilds_it(self, name):
        assert make_combiner(name) == eval(repr(make_combiner(name)), vars(hqde.ensemble))
        assert make_combiner(name).name == name


def test_worked_examples():
    probs = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]], [[0.1, 0.9]]])
    scores = torch.tensor([1.0, 0.5, 0.1])
    torch.testing.assert_close(MeanCombiner().combine(probs, scores), torch.tensor([[0.5, 0.5]]))
    weights = np.exp([1.0, 0.5, 0.1]) / np.exp([1.0, 0.5, 0.1]).sum()
    first = float(weights @ [0.9, 0.5, 0.1])
    torch.testing.assert_close(
        EfficiencyCombiner().combine(probs, scores), torch.tensor([[first, 1 - first]]), rtol=1e-6, atol=1e-6
    )
    # Geometric means (0.9·0.5)^½ and (0.1·0.5)^½ are as 3 to 1.
    pooled = LogPoolCombiner().combine(probs[:2], scores[:2])
    torch.testing.assert_close(pooled, torch.tensor([[0.75, 0.25]]))


def test_one_member_is_returned_bit_for_bit_by_the_means():
    probs = torch.softmax(torch.randn(1, 50, 7, generator=torch.Generator().manual_seed(0)), dim=2)
    for combiner in (MeanCombiner(), EfficiencyCombiner()):
        assert torch.equal(combiner.combine(probs, torch.tensor([0.3])), probs[0])


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'log_pool'"):
        make_combiner("logpool")


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), bad=st.integers(1, 3))
def test_a_minority_cannot_move_a_class_beyond_what_the_others_say(name, seed, bad):
    draws = torch.Generator().manual_seed(seed)
    count = {"median": 2 * bad + 1, "trimmed_mean": 4 * bad}[name]
    honest = torch.softmax(torch.randn(count - bad, 5, 4, generator=draws), dim=2)
    liars = torch.eye(4)[torch.randint(4, (bad, 5), generator=draws)]
    found = make_combiner(name).combine(torch.cat([liars, honest]), torch.ones(count))
    # Before it is normalised every class lies between the least and the greatest honest probability.
    low, high = honest.amin(dim=0), honest.amax(dim=0)
    assert (found <= high / (high + low.sum(1, keepdim=True) - low) + 1e-6).all()
    assert (found >= low / (low + high.sum(1, keepdim=True) - high) - 1e-6).all()


def test_median_and_trimmed_mean_by_hand():
    probs = torch.tensor([0.1, 0.2, 0.3, 0.6, 1.0])
    probs = torch.stack([probs, 1 - probs], dim=1).unsqueeze(1)
    assert MedianCombiner().combine(probs, torch.ones(5)).tolist() == [pytest.approx([0.3, 0.7])]
    trimmed = (0.2 + 0.3 + 0.6) / 3
    assert TrimmedMeanCombiner().combine(probs, torch.ones(5)).tolist() == [
        pytest.approx([trimmed, 1 - trimmed])
    ]
    without_last = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])
    assert MedianCombiner().pool(probs, without_last).tolist() == [pytest.approx([0.25, 0.75])]


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([0.3, 0.3, 0.3, 0.3], [1, 1, 1, 1]),
        ([0.30, 0.31, 0.29, 0.35], [1, 1, 1, 1]),  # within a tenth of the median five times over
        ([0.3, 0.31, 0.29, 2.3], [1, 1, 1, 0]),
        ([0.3, 0.31, 0.29, 0.01], [1, 1, 1, 1]),  # a low loss is no fault
        ([0.3, 0.31, math.nan, math.inf], [1, 1, 0, 0]),
        ([0.1, 5.0], [1, 0]),  # of two, the lower is the median
        ([math.inf, math.inf, 1.0], [0, 0, 1]),
        ([1.0], [1]),
    ],
)
def test_members_with_outlying_losses_get_no_weight(losses, kept):
    weights = torch.full((len(losses),), 1 / len(losses))
    found = drop_outliers(weights, torch.tensor(losses))
    assert found.tolist() == pytest.approx([one / sum(kept) for one in kept])


@pytest.mark.parametrize("losses", [[0.1], [math.nan, math.nan], [[0.1, 0.2]]])
def test_losses_that_say_nothing_are_refused(losses):
    with pytest.raises(PreconditionError, match="a held-out loss for each of 2 members"):
        drop_outliers(torch.ones(2) / 2, torch.tensor(losses))
