"""The weighted mean against a slow one, and what no rule accepts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from hqde.aggregation import Aggregate, Mean, check_rows
from hqde.errors import PreconditionError


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """float64 rows (n, d) and shares (n,) that sum to 1, some of them zero."""
    n, d = draw(st.integers(1, 6)), draw(st.integers(0, 7))
    rows = draw(hnp.arrays(np.float64, (n, d), elements=st.floats(-1e3, 1e3, width=32)))
    counts = draw(st.lists(st.integers(0, 50), min_size=n, max_size=n).filter(any))
    shares = torch.tensor(counts, dtype=torch.float64)
    return torch.from_numpy(rows), shares / shares.sum()


def slow_mean(rows: Tensor, shares: Tensor) -> list[float]:
    """Σᵢ shareᵢ · rowᵢ in Python's exactly rounded float64 sums."""
    weights = shares.tolist()
    return [
        math.fsum(share * row[j] for share, row in zip(weights, rows.tolist(), strict=True))
        for j in range(rows.shape[1])
    ]


@settings(deadline=None)
@given(case=cases())
def test_mean_is_the_float64_loop(case):
    rows, shares = case
    found = Mean()(rows, shares)
    assert found.value.dtype == torch.float64
    assert found.value.tolist() == pytest.approx(slow_mean(rows, shares), rel=1e-12, abs=1e-9)


@settings(deadline=None)
@given(case=cases())
def test_mean_of_float32_rows_stays_near_the_float64_loop(case):
    rows, shares = case
    found = Mean()(rows.float(), shares).value
    # n additions, each rounding to 2⁻²⁴ of a partial sum that is at most the largest row
    bound = (len(rows) + 1) * 2.0**-23 * float(rows.abs().max() if rows.numel() else 0) + 1e-30
    assert found.dtype == torch.float32
    assert found.double().tolist() == pytest.approx(slow_mean(rows, shares), rel=0, abs=bound)


@settings(deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_rows_and_their_shares_may_be_permuted(case, seed):
    rows, shares = case
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    one, other = Mean()(rows, shares), Mean()(rows[order], shares[order])
    torch.testing.assert_close(one.value, other.value, rtol=1e-12, atol=1e-9)
    assert torch.equal(one.decision.weights[order], other.decision.weights)


@settings(deadline=None)
@given(case=cases(), factor=st.sampled_from([-4.0, 0.0, 0.5, 2.0]))
def test_scaling_by_a_power_of_two_scales_the_mean_exactly(case, factor):
    rows, shares = case
    assert torch.equal(Mean()(rows * factor, shares).value, Mean()(rows, shares).value * factor)


@settings(deadline=None)
@given(case=cases(), shift=st.floats(-100, 100))
def test_translating_all_rows_translates_the_mean(case, shift):
    rows, shares = case
    moved = Mean()(rows + shift, shares).value
    torch.testing.assert_close(moved, Mean()(rows, shares).value + shift, rtol=1e-12, atol=1e-9)


@settings(deadline=None)
@given(case=cases())
def test_unanimous_rows_are_their_own_mean(case):
    rows, shares = case
    same = rows[:1].expand(len(rows), -1)
    torch.testing.assert_close(Mean()(same, shares).value, rows[0], rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(case=cases())
def test_a_row_without_a_share_does_not_count_and_a_single_row_is_returned_exactly(case):
    rows, _ = case
    for picked in range(len(rows)):
        shares = torch.zeros(len(rows), dtype=torch.float64)
        shares[picked] = 1.0
        assert torch.equal(Mean()(rows, shares).value, rows[picked])


@settings(deadline=None)
@given(case=cases())
def test_nothing_that_is_given_is_changed(case):
    rows, shares = case
    kept = rows.clone(), shares.clone()
    found = Mean()(rows, shares)
    found.value.add_(1.0)
    assert torch.equal(rows, kept[0])
    assert torch.equal(shares, kept[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_has_the_dtype_of_the_rows(dtype):
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]], dtype=dtype)
    found = Mean()(rows, torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))
    assert found.value.dtype == dtype
    assert found.value.tolist() == [3.0, 6.0]


def test_what_the_mean_reports_of_itself():
    shares = torch.tensor([0.25, 0.75])
    found = Mean()(torch.eye(2), shares)
    assert isinstance(found, Aggregate)
    assert torch.equal(found.decision.weights, shares)
    assert (found.decision.rejected, found.decision.iterations, found.decision.converged) == ({}, 0, True)
    assert repr(Mean()) == "Mean()"


HALVES = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("rows", "shares", "sentence"),
    [
        (torch.zeros(2), HALVES, r"rows of shape \(n, d\) with n >= 1, got \(2,\)"),
        (torch.zeros(0, 3), torch.zeros(0), r"rows of shape \(n, d\) with n >= 1, got \(0, 3\)"),
        (torch.zeros(2, 3, 1), HALVES, r"rows of shape \(n, d\) with n >= 1, got \(2, 3, 1\)"),
        (torch.zeros(2, 3, dtype=torch.int64), HALVES, "one floating dtype, got torch.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), HALVES, "one floating dtype, got torch.complex64"),
        ([torch.zeros(3), torch.zeros(2)], HALVES, r"rows of shapes \[\(2,\), \(3,\)\]"),
        ([torch.zeros(3), torch.zeros(3).double()], HALVES, "one floating dtype"),
        ([], torch.zeros(0), "n >= 1"),
        (torch.zeros(2, 3), torch.tensor([1.0]), r"2 rows need as many shares, got \(1,\)"),
        (torch.zeros(2, 3), HALVES.unsqueeze(1), r"2 rows need as many shares, got \(2, 1\)"),
        (torch.zeros(2, 3), torch.tensor([0.5, 0.4]), "a sum of 0.9"),
        (torch.zeros(2, 3), torch.tensor([1.5, -0.5]), "a least share of -0.5"),
        (torch.zeros(2, 3), torch.tensor([0.5, math.nan]), "shares must be non-negative and sum to 1"),
        (torch.zeros(2, 3), torch.tensor([math.inf, 0.5]), "a sum of inf"),
    ],
)
def test_what_no_rule_accepts(rows, shares, sentence):
    with pytest.raises(PreconditionError, match=sentence):
        check_rows(rows, shares)
    with pytest.raises(PreconditionError, match=sentence):
        Mean()(rows, shares)
