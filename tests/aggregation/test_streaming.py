"""Rows in slices and on disk give the bits of rows in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hqde.aggregation import (
    BLOCK,
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Mean,
    NearestNeighbourMixing,
    TrimmedMean,
    aggregate_stream,
)
from hqde.errors import NonFiniteError, PreconditionError

SHARES = torch.full((7,), 1 / 7, dtype=torch.float64)
ROWS = torch.randn(7, 5 * BLOCK + 9, generator=torch.Generator().manual_seed(0))
RULES = [
    Mean(),
    CoordinateMedian(),
    GeometricMedian(),
    Bulyan(1),
    NearestNeighbourMixing(2) >> TrimmedMean(2),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_slices_give_the_bits_of_the_whole(rule, blocks):
    found = aggregate_stream(rule, lambda: ROWS.split(blocks * BLOCK, dim=1), SHARES)
    assert torch.equal(found.value, rule(ROWS, SHARES).value)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_memory_mapped_rows_give_the_bits_of_rows_in_memory_and_are_not_written_to(rule, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")  # torch wants arrays that it could write to
    found = rule([torch.from_numpy(row) for row in mapped], SHARES)
    assert torch.equal(found.value, rule(ROWS, SHARES).value)
    assert torch.equal(torch.from_numpy(np.array(mapped)), ROWS)


def test_slices_that_do_not_end_at_a_block_are_refused_unless_they_are_last():
    with pytest.raises(PreconditionError, match="but one ended at column 100"):
        aggregate_stream(Mean(), lambda: ROWS.split([100, ROWS.shape[1] - 100], dim=1), SHARES)


@pytest.mark.parametrize("rule", RULES[:3], ids=lambda rule: rule.name)
def test_nothing_to_read_is_refused(rule):
    with pytest.raises(PreconditionError, match="no slice of columns was read"):
        aggregate_stream(rule, list, SHARES)


@pytest.mark.parametrize("rule", RULES[1:3], ids=lambda rule: rule.name)
def test_a_slice_that_is_not_finite_is_refused(rule):
    rows = ROWS.clone()
    rows[3, -1] = float("nan")
    with pytest.raises(NonFiniteError):
        aggregate_stream(rule, lambda: rows.split(BLOCK, dim=1), SHARES)
