"""One step of an aggregation, wherever it runs: pure functions of arrays that were checked on arrival.

They run on the workers' actors, which are idle between rounds, have torch loaded, and stand on every node.
Each may be run again anywhere: nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hqde.aggregation import (
    Decision,
    GramParts,
    Rule,
    ServerOptimizer,
    gram_parts,
    merge_parts,
    step_columns,
    weighted_sum,
)
from hqde.backends.on_ray.shipping import as_array, as_delta, as_tensor, checksum


class DamagedPieceError(Exception):
    """A piece of a delta does not check to what its worker wrote. ``row``: position in the aggregation."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def verify(arrays: Sequence[np.ndarray], checksums: Sequence[int], rows: Sequence[int]) -> None:
    """Refuse arrays that do not check.

    Raises:
        DamagedPieceError: names the row that the first such array belongs to.
    """
    for array, expected, row in zip(arrays, checksums, rows, strict=True):
        if checksum(array) != expected:
            raise DamagedPieceError(row)


def _rows(
    dtype: torch.dtype, checks: Sequence[tuple[int, int]], arrays: Sequence[np.ndarray]
) -> list[Tensor]:
    verify(arrays, [expected for _, expected in checks], [row for row, _ in checks])
    return [as_delta(array, dtype) for array in arrays]


def add_rows(
    weights: Sequence[float], dtype: torch.dtype, checks: Sequence[tuple[int, int]], *arrays: np.ndarray
) -> np.ndarray:
    """A weighted sum of neighbouring rows, a tree's lowest level. ``checks``: row and checksum of each."""
    rows = _rows(dtype, checks, arrays)
    return as_array(weighted_sum(rows, weights))


def add_sums(dtype: torch.dtype, *arrays: np.ndarray) -> np.ndarray:
    """A sum of sums: the higher levels."""
    return as_array(weighted_sum([as_tensor(array, dtype) for array in arrays], [1.0] * len(arrays)))


def inspect(
    first_block: int, dtype: torch.dtype, checks: Sequence[tuple[int, int]], *arrays: np.ndarray
) -> GramParts:
    """One shard's part of the Gram matrix of all rows."""
    return gram_parts(_rows(dtype, checks, arrays), first_block=first_block)


def merge(*parts: GramParts) -> GramParts:
    """The parts of several shards as one."""
    return merge_parts(parts)


def combine_shard(
    step: tuple[Rule, Decision, ServerOptimizer, int],
    dtype: torch.dtype,
    names: Sequence[str],
    checks: Sequence[tuple[int, int]],
    base: np.ndarray,
    *arrays: np.ndarray,
) -> Any:
    """One shard's new weights and server state: ``base``, the state's arrays by ``names``, then the rows."""
    rule, decision, server, num_parameters = step
    state = {name: as_tensor(array, dtype) for name, array in zip(names, arrays, strict=False)}
    value = rule.combine(_rows(dtype, checks, arrays[len(names) :]), decision)
    vector, state = step_columns(value, as_tensor(base, dtype), server, state, num_parameters)
    made = [as_array(vector), *(as_array(state[name]) for name in names)]
    return made if names else made[0]
