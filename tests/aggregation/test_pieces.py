"""Sums and Gram matrices made in pieces have the bits of those made whole."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.aggregation import BLOCK, add_pairwise, gram_matrix, gram_parts, merge_parts, weighted_sum
from hqde.aggregation.geometry import squared_distances
from hqde.errors import NonFiniteError


def some_rows(n: int, d: int, seed: int = 0) -> list[torch.Tensor]:
    """Rows whose sums round in nearly every addition."""
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(d, generator=draws) * 10.0 ** (i % 5) for i in range(n)]


@settings(deadline=None)
@given(n=st.integers(1, 40), fan_in=st.sampled_from([2, 4, 8, 16]))
def test_partial_sums_over_aligned_blocks_add_up_to_the_same_bits(n, fan_in):
    rows = some_rows(n, 33)
    level = rows
    while len(level) > 1:
        blocks = [level[i : i + fan_in] for i in range(0, len(level), fan_in)]
        level = [add_pairwise(row.clone() for row in block) for block in blocks]
    assert torch.equal(level[0], weighted_sum(rows, [1.0] * n))


def test_columns_are_independent_of_each_other():
    rows = some_rows(11, 100_003)
    weights = torch.rand(11, generator=torch.Generator().manual_seed(1)).tolist()
    whole = weighted_sum(rows, weights)
    for cuts in ([1, 70_000], [32_768, 65_536], [99_999]):
        slices = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        pieces = torch.cat([weighted_sum([row[s] for row in rows], weights) for s in slices])
        assert torch.equal(pieces, whole)


def test_the_sum_is_nearer_the_exact_one_than_adding_in_a_row_is():
    rows = [torch.tensor([0.1])] * 4096
    exact = math.fsum(float(row) for row in rows)
    in_a_row = torch.zeros(1)
    for row in rows:
        in_a_row += row
    assert abs(float(weighted_sum(rows, [1.0] * 4096)) - exact) < abs(float(in_a_row) - exact) / 10


def test_there_must_be_something_to_add():
    with pytest.raises(ValueError, match="nothing to add"):
        add_pairwise([])


@settings(deadline=None, max_examples=25)
@given(blocks=st.integers(1, 11), cuts=st.sets(st.integers(1, 10)), seed=st.integers(0, 99))
def test_gram_parts_of_any_shards_in_any_order_give_the_same_bits(blocks, cuts, seed):
    d = blocks * BLOCK - 7
    rows = some_rows(4, d, seed)
    bounds = [0, *sorted(c for c in cuts if c < blocks), blocks]
    parts = [
        gram_parts([row[a * BLOCK : b * BLOCK] for row in rows], first_block=a)
        for a, b in itertools.pairwise(bounds)
    ]
    random.Random(seed).shuffle(parts)
    half = len(parts) // 2
    merged = merge_parts([merge_parts(parts[:half]), merge_parts(parts[half:])])
    assert torch.equal(gram_matrix(merged), gram_matrix(gram_parts(rows)))


def around_zero(rows: torch.Tensor) -> torch.Tensor:
    """Squared distances between rows and origin, by subtraction in float64."""
    points = torch.cat([rows.double(), torch.zeros(1, rows.shape[1], dtype=torch.float64)])
    return torch.stack([(points - point).square().sum(dim=1) for point in points])


def outliers(rows: torch.Tensor) -> torch.Tensor:
    rows[1:4] *= 1e4
    return rows


def colluders(rows: torch.Tensor) -> torch.Tensor:
    rows[0] = rows[3] = -1e3 * rows[2]
    return rows


GEOMETRIES = {
    "plain": lambda rows: rows,
    "a common part": lambda rows: rows + 1e4,
    "outliers": outliers,
    "the first row is far out": lambda rows: torch.cat([rows[:1] * 1e6, rows[1:]]),
    "colluders far out": colluders,
    "duplicates": lambda rows: torch.cat([rows[:3], rows[:3], rows[6:]]),
    "zero rows": lambda rows: torch.cat([rows[:5], 0 * rows[:2], rows[7:]]),
    "small": lambda rows: rows * 1e-18,
    "large": lambda rows: rows * 1e30,
    "one huge": lambda rows: torch.cat([rows[:-1], rows[-1:] * 1e30]),
    "scales nested": lambda rows: rows * 10.0 ** torch.arange(-12.0, 12.0, 24 / len(rows)).unsqueeze(1),
    "two clusters": lambda rows: rows + 1e3 * (torch.arange(len(rows)) % 2).unsqueeze(1),
    "all zero": lambda rows: rows * 0,
}


@pytest.mark.parametrize("case", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_are_right_however_the_rows_lie(case, dtype):
    rows = GEOMETRIES[case](
        torch.randn(10, BLOCK + 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    )
    found, exact = squared_distances(gram_matrix(gram_parts(rows))), around_zero(rows)
    torch.testing.assert_close(found, exact, rtol=2e-5 if dtype == torch.float32 else 1e-8, atol=0)


def test_products_with_a_far_row_keep_the_precision_of_both():
    draws = torch.Generator().manual_seed(1)
    rows = torch.randn(9, BLOCK, generator=draws)
    rows[0] *= 1e6
    gram, centred = gram_matrix(gram_parts(rows)), rows.double()
    step = torch.tensor([1e-6, -1e-6, 0.5, -0.5, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    exact = float((step[:-1] @ centred).square().sum())
    assert float(step @ gram @ step) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_row_without_a_finite_norm_is_named(bad):
    rows = torch.zeros(4, BLOCK + 1, dtype=torch.float64)
    rows[2, -1] = bad
    with pytest.raises(NonFiniteError, match=r"rows \[2\] hold NaN, infinity or numbers beyond 1e\+140"):
        gram_parts(rows)
