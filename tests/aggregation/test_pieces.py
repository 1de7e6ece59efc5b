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


def test_the_gram_matrix_is_that_of_centred_rows():
    rows = torch.stack(some_rows(5, BLOCK + 100)).double()
    centred = rows - rows.mean(dim=0)
    found = gram_matrix(gram_parts(rows))
    torch.testing.assert_close(found, centred @ centred.T, rtol=1e-12, atol=1e-9)
