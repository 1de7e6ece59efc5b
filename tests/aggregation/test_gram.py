"""Gram matrices: those of the blocks, exact where points are close, the same bits for any slicing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from hqde.aggregation import GeometricMedian, gram
from hqde.aggregation.gram import BLOCK, gram_matrix, gram_parts, merge_parts
from hqde.aggregation.summation import combined_rows
from hqde.errors import PreconditionError


def rows_of_all_sorts(num_rows, num_blocks):
    """Blocks of rows far from each other, then near each other, then tiny, then huge, and so on."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, num_blocks * BLOCK + 33, generator=draws)
    for block in range(num_blocks + 1):
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        if block % 4 == 1:  # near each other, far from the origin
            rows[:, columns] = rows[0, columns] + 1e-4 * rows[:, columns]
        elif block % 4 == 2:
            rows[:, columns] *= 1e-18
        elif block % 4 == 3:
            rows[:, columns] *= 1e17
    return rows


@pytest.mark.parametrize("num_rows", [1, 2, 5, 33, 40])
def test_blocks_taken_together_have_the_bits_of_blocks_taken_one_by_one(num_rows, monkeypatch):
    rows = rows_of_all_sorts(num_rows, 6)
    together = gram_matrix(gram_parts(rows))
    monkeypatch.setattr(gram, "NUMBERS_AT_ONCE", 1)
    assert torch.equal(gram_matrix(gram_parts(rows)), together)
    shards = [(rows[:, first * BLOCK :], first) for first in (4,)] + [(rows[:, : 4 * BLOCK].clone(), 0)]
    parts = [gram_parts(list(shard), first_block=first) for shard, first in shards]
    assert torch.equal(gram_matrix(merge_parts(parts)), together)


@pytest.mark.parametrize("num_rows", [2, 5, 31, 32, 33, 70])
@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_distances_within_a_block_are_those_of_float64(num_rows, block):
    rows = rows_of_all_sorts(num_rows, 3)[:, block * BLOCK : (block + 1) * BLOCK]
    found = gram_matrix(gram_parts(rows))
    assert torch.equal(found, found.T)
    points = torch.cat([rows.double(), torch.zeros(1, rows.shape[1], dtype=torch.float64)])
    own = found.diagonal()
    squares = own.unsqueeze(0) + own.unsqueeze(1) - 2 * found
    exact = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    torch.testing.assert_close(squares, exact, rtol=2e-5, atol=0.0)


@pytest.mark.parametrize("num_rows", [1, 3, 4, 5, 18])
@pytest.mark.parametrize("width", [1, 15, 1024, 1025, 3001, BLOCK, BLOCK + 5, BLOCK + 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_those_of_float64_however_rows_are_laid_out(num_rows, width, dtype):
    draws = torch.Generator().manual_seed(num_rows * width)
    rows = torch.randn(num_rows, width, generator=draws, dtype=torch.float64).to(dtype)
    found = gram_matrix(gram_parts(rows))
    points = torch.cat([rows.double(), torch.zeros(1, width, dtype=torch.float64)])
    exact = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    own = found.diagonal()
    squares = own.unsqueeze(0) + own.unsqueeze(1) - 2 * found
    torch.testing.assert_close(squares, exact, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=1e-9)
    strided = torch.empty(num_rows, 2 * width, dtype=dtype)[:, ::2].copy_(rows)
    shifted = (
        torch.empty(num_rows * (width + 3) + 1, dtype=dtype)[1:].view(num_rows, -1)[:, :width].copy_(rows)
    )
    for other in (strided, shifted, list(rows), [row.clone() for row in rows], list(strided)):
        assert torch.equal(gram_matrix(gram_parts(other)), found)


def test_a_rule_in_inference_mode_spoils_none_that_follows():
    rows, shares = torch.randn(4, 100), torch.full((4,), 0.25, dtype=torch.float64)
    with torch.inference_mode():
        first = GeometricMedian()(rows, shares).value.clone()
    assert torch.equal(GeometricMedian()(rows, shares).value, first)


class Lazy(Sequence):
    """Rows that nobody holds."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place].clone()


@pytest.mark.parametrize("width", [100, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_may_be_made_when_they_are_asked_for_or_carry_a_sign(width, dtype):
    rows = torch.randn(4, width, dtype=dtype, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(4, dtype=torch.float64)
    negative = torch.complex(torch.zeros_like(rows), -rows).conj().imag
    assert negative.is_neg()
    for other in (Lazy(rows), negative, list(negative)):
        assert torch.equal(gram_matrix(gram_parts(other)), gram_matrix(gram_parts(rows)))
        assert torch.equal(combined_rows(other, weights), combined_rows(rows, weights))


def test_rows_that_do_not_fit_each_other():
    rows = torch.randn(3, 5000)
    with pytest.raises(PreconditionError, match=r"lengths \[3000, 5000\]"):
        combined_rows([rows[0], rows[1, :3000], rows[2]], torch.ones(3))
    mixed = combined_rows([rows[0], rows[1].double(), rows[2]], torch.ones(3))
    assert torch.equal(mixed, combined_rows(rows, torch.ones(3)))
    for dtype in (torch.float32, torch.float64):
        assert not gram_matrix(gram_parts(torch.empty(3, 0, dtype=dtype))).any()
