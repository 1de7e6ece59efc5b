"""Sums of rows: the same bits however the work is cut up."""

from __future__ import annotations

import pytest
import torch

from hqde.aggregation.gram import BLOCK
from hqde.aggregation.summation import combined_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_combined_rows_have_the_same_bits_stacked_listed_and_by_shards(dtype):
    rows = torch.randn(7, 3 * BLOCK + 77, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = combined_rows(rows, weights)
    wanted = (rows.double() * weights[:, None]).sum(dim=0)
    torch.testing.assert_close(
        whole.double(), wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
    assert whole.dtype == dtype
    assert torch.equal(whole, combined_rows([row.clone() for row in rows], weights))
    for first in (BLOCK, 2 * BLOCK):
        assert torch.equal(whole[first:], combined_rows(rows[:, first:], weights))
        assert torch.equal(whole[:first], combined_rows([row[:first] for row in rows], weights))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_of_weight_0_makes_no_difference_whatever_it_holds(bad):
    rows = torch.randn(7, 2 * BLOCK + 77, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[[1, 4]] = 0.0
    clean = combined_rows(rows, weights)
    rows[4, [3, -1]] = bad
    spoilt = combined_rows(rows, weights)
    torch.testing.assert_close(spoilt, clean, rtol=1e-5, atol=1e-6)
    assert torch.equal(spoilt, combined_rows(list(rows), weights))
    assert torch.equal(spoilt[BLOCK:], combined_rows(rows[:, BLOCK:], weights))
    assert torch.equal(spoilt[BLOCK : 2 * BLOCK], clean[BLOCK : 2 * BLOCK])
