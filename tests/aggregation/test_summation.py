"""Sums of rows: the same bits however the work is cut up."""

from __future__ import annotations

import os
import time

import pytest
import torch

from hqde.aggregation.gram import BLOCK
from hqde.aggregation.summation import combined_rows, over_columns


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


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_chunks_are_spread_over_threads_and_what_they_raise_is_raised():
    seen = []
    over_columns(10, 2, seen.append)
    assert sorted(chunk.start for chunk in seen) == [0, 2, 4, 6, 8]
    with pytest.raises(ZeroDivisionError):
        over_columns(10, 2, lambda chunk: 1 // chunk.start)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    over_columns(10, 2, lambda chunk: None)
    child = os.fork()
    if child == 0:
        over_columns(10, 2, lambda chunk: None)
        os._exit(7)
    until = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
    assert ended[0] == child
