"""Inner products between rows, in pieces that add up to the same bits wherever they are computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# Columns per block. Shards of a distributed aggregation are cut at multiples of it.
BLOCK = 1 << 14

GramParts = dict[tuple[int, int], Tensor]
"""Partial Gram matrices ``(n, n)`` float64 by (height, index): the node of a binary tree over blocks that
covers the blocks from ``index · 2^height`` up to, not including, ``(index + 1) · 2^height``."""


def gram_parts(rows: Sequence[Tensor] | Tensor, *, first_block: int = 0) -> GramParts:
    """The centred Gram matrix of some columns: inner products of rows minus their mean.

    Args:
        rows: n vectors ``(c,)``: the columns from ``first_block · BLOCK`` on; all but the last slice of a
            vector must be whole blocks long.
        first_block: position of the first column, in blocks.

    Returns:
        the fewest tree nodes that cover the columns.
    """
    parts: GramParts = {}
    for offset, begin in enumerate(range(0, len(rows[0]), BLOCK)):
        block = torch.stack([row[begin : begin + BLOCK] for row in rows]).double()
        block -= block.mean(dim=0)
        _insert(parts, (0, first_block + offset), block @ block.T)
    return parts


def merge_parts(many: Iterable[Mapping[tuple[int, int], Tensor]]) -> GramParts:
    """Partial matrices of disjoint columns as one, in any order of arrival."""
    merged: GramParts = {}
    for parts in many:
        for node, matrix in parts.items():
            _insert(merged, node, matrix.clone())
    return merged


def gram_matrix(parts: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """The Gram matrix ``(n, n)`` of all columns, from parts that cover them.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> gram_matrix(gram_parts(rows))
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    # What has no sibling is the ragged right edge of the tree: added from the right, lowest nodes first.
    ragged = sorted(parts, key=lambda node: node[1] << node[0], reverse=True)
    total = parts[ragged[0]].clone()
    for node in ragged[1:]:
        total = parts[node] + total
    return total


def _insert(parts: GramParts, node: tuple[int, int], matrix: Tensor) -> None:
    """Add a node; whenever both children of a node are there, they become that node."""
    height, index = node
    while (sibling := parts.pop((height, index ^ 1), None)) is not None:
        matrix = sibling + matrix if index & 1 else matrix + sibling
        height, index = height + 1, index >> 1
    parts[height, index] = matrix
