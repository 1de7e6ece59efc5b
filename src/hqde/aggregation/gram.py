"""Inner products between rows, in pieces that add up to the same bits wherever they are computed.

Rules that look at rows as wholes need nothing but inner products. These are taken between n + 1 points, the
rows and, last, the origin (so that norms are there too), each minus a reference point. ‖x‖² + ‖y‖² - 2⟨x, y⟩
loses a small distance between large rows to cancellation, and the mean is no help: one far row moves it away
from all others. So the reference is one of the rows, in every block of columns one that most are near to.
Products are float32, with sums over chunks of columns in float64. Pairs that lie much closer to each other
than to the reference are taken again around one of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from hqde.aggregation.products import Block, Rows
from hqde.aggregation.threads import slices, spread_runs
from hqde.errors import NonFiniteError
from hqde.finite import is_finite

# Columns per block. Shards of a distributed aggregation are cut at multiples of it.
BLOCK = 1 << 14

# Blocks of so few columns are multiplied in float64: it costs nothing there.
NARROW = 1 << 10

# Products that are held at once: those of a few blocks.
NUMBERS_AT_ONCE = 1 << 20

# A pair is taken again when ‖x - r‖² + ‖y - r‖² exceeds this many times ‖x - y‖²: 16 roundings of float32
# products, of about 2e-7 each, are the error that a squared distance may have.
MAX_CANCELLATION = {torch.float32: 16.0, torch.float64: 1e7}
# float32 products of a block that are larger or smaller than these are taken in float64: they may overflow
# (1e38) or vanish (1e-38).
PRODUCT_RANGE = {torch.float32: (1e-24, 1e32), torch.float64: (0.0, 1e300)}

# Squares of larger numbers, summed over a row, may leave the range of float64.
MAX_MAGNITUDE = 1e140

GramParts = dict[tuple[int, int], Tensor]
"""Partial Gram matrices ``(n + 1, n + 1)`` float64 by (height, index): the node of a binary tree over blocks
that covers the blocks from ``index · 2^height`` up to, not including, ``(index + 1) · 2^height``."""


def gram_parts(rows: Sequence[Tensor] | Tensor, *, first_block: int = 0) -> GramParts:
    """The centred Gram matrix of some columns: inner products of rows and origin minus a reference point.

    Where the reference lies does not follow from anything a rule may ask: distances, angles and mixtures come
    out the same for every reference, but for rounding. Reads the rows once.

    Args:
        rows: n vectors ``(c,)`` of one floating dtype: the columns from ``first_block · BLOCK`` on; all but
            the last slice of a vector must be whole blocks long. May be a tensor, a list, views of a
            memory-mapped file; never mutated.
        first_block: position of the first column, in blocks.

    Returns:
        the fewest tree nodes that cover the columns.

    Raises:
        NonFiniteError: a row holds NaN or infinity; admission keeps such rows from a rule.
    """
    parts: GramParts = {}
    reader = Rows(rows)
    size = max(1, reader.size)
    at_once = BLOCK * max(1, min(64, NUMBERS_AT_ONCE // len(rows) ** 2))
    for group in slices(0, size, at_once):
        operations = 0.5 * len(rows) ** 2 * (group.stop - group.start)
        found = spread_runs(partial(_grams, reader), group.start, group.stop, BLOCK, operations=operations)
        for offset, matrix in enumerate(chain.from_iterable(found)):
            _insert(parts, (0, first_block + group.start // BLOCK + offset), matrix)
    return parts


def merge_parts(many: Iterable[Mapping[tuple[int, int], Tensor]]) -> GramParts:
    """Partial matrices of disjoint columns as one, in any order of arrival."""
    merged: GramParts = {}
    for parts in many:
        for node, matrix in parts.items():
            _insert(merged, node, matrix.clone())
    return merged


def gram_matrix(parts: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """The Gram matrix ``(n + 1, n + 1)`` of all columns, from parts that cover them; the origin is last.

    Example:
        >>> rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> gram_matrix(gram_parts(rows))  # around the first row: (0, 0), (-3, 4), (-3, 0)
        tensor([[ 0.,  0.,  0.],
                [ 0., 25.,  9.],
                [ 0.,  9.,  9.]], dtype=torch.float64)
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


def is_measurable(row: Tensor) -> bool:
    """Whether a row has a finite norm: no NaN, no infinity, and nothing whose square float64 cannot hold.

    >>> is_measurable(torch.tensor([1e30])), is_measurable(torch.tensor([float("inf")]))
    (True, False)
    """
    if row.dtype != torch.float64:
        return is_finite(row)
    return not len(row) or bool(row.abs().max() <= MAX_MAGNITUDE)


def _grams(rows: Rows, columns: slice) -> list[Tensor]:
    """The Gram matrices ``(n + 1, n + 1)`` of some blocks, on the CPU; most need one product around a row."""
    blocks = [Block(rows, part) for part in slices(columns.start, columns.stop, BLOCK)]
    plain = [block for block in blocks if rows.in_place(_dtype_of(block))]  # but for the last, all or none
    if not plain or not rows.size:
        return [_gram(block) for block in blocks]
    limits = *PRODUCT_RANGE[rows.dtype], MAX_CANCELLATION[rows.dtype]
    found, settled = rows.products_in_place(slice(columns.start, plain[-1].columns.stop), BLOCK, limits)
    first = [
        products if done else _gram(block, products)
        for block, products, done in zip(plain, found, settled, strict=True)
    ]
    return first + [_gram(block) for block in blocks[len(plain) :]]


def _gram(block: Block, first: Tensor | None = None) -> Tensor:
    """The Gram matrix ``(n + 1, n + 1)`` of one block, on the CPU.

    Args:
        first: products around the first row, where they are known; changed in place.
    """
    dtype, everyone = _dtype_of(block), range(len(block.rows) + 1)
    found = _settled(block, dtype, block.products(everyone, 0, dtype) if first is None else first)
    if found is None and dtype != torch.float64:
        found = _settled(block, torch.float64, block.products(everyone, 0, torch.float64))
    if found is None:
        bad = [i for i, row in enumerate(block.rows.vectors) if not is_measurable(row[block.columns])]
        raise NonFiniteError(
            f"rows {bad} hold NaN, infinity or numbers beyond {MAX_MAGNITUDE:g}: admit updates before a rule "
            "sees them."
        )
    return found


def _dtype_of(block: Block) -> torch.dtype:
    """What a block's products are made in."""
    wide = block.rows.dtype == torch.float64 or block.width <= NARROW
    return torch.float64 if wide else torch.float32


def _settled(block: Block, dtype: torch.dtype, products: Tensor) -> Tensor | None:
    """The Gram matrix around a row that most are near to, with close pairs put right.

    Args:
        dtype: to multiply in.
        products: those around the first row; changed in place.

    Returns:
        ``None`` if products leave the range of the dtype.
    """
    everyone = list(range(len(block.rows) + 1))
    for attempt in range(4):  # each is nearer to the majority
        if not _are_in_range(products, dtype):
            return None
        squares, clusters = _squares(products, dtype)
        largest = max(clusters, key=len, default=[])
        if 2 * len(largest) < len(everyone) or attempt == 3:
            break
        products = block.products(everyone, _middle(squares, largest), dtype)
    for cluster in clusters:
        inner = _close_squares(block, cluster, _middle(squares, cluster), dtype)
        if inner is None:
            return None
        position = torch.tensor(cluster)
        own = products.diagonal()[position]
        patched = 0.5 * (own.unsqueeze(0) + own.unsqueeze(1) - inner)
        products[position.unsqueeze(1), position] = patched
    return products


def _close_squares(block: Block, members: list[int], reference: int, dtype: torch.dtype) -> Tensor | None:
    """Squared distances ``(m, m)`` between points near each other, taken around one of them.

    A reference is exact to all others, so every step settles a point at least.
    """
    products = block.products(members, members.index(reference), dtype)
    if not _are_in_range(products, dtype):
        return None
    squares, clusters = _squares(products, dtype)
    for cluster in clusters:
        close = [members[i] for i in cluster]
        inner = _close_squares(block, close, members[_middle(squares, cluster)], dtype)
        if inner is None:
            return None
        position = torch.tensor(cluster)
        squares[position.unsqueeze(1), position] = inner
    return squares


def _squares(products: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[list[int]]]:
    """Squared distances ``(m, m)``, and clusters of points between which they are not to be trusted."""
    own = products.diagonal()
    sums = own.unsqueeze(0) + own.unsqueeze(1)
    squares = (sums - 2.0 * products).clamp_min_(0.0).fill_diagonal_(0.0)
    close = (squares * MAX_CANCELLATION[dtype] < sums).fill_diagonal_(False)
    return squares, _clusters(close) if bool(close.any()) else []


def _middle(squares: Tensor, cluster: list[int]) -> int:
    """The point of a cluster from which half of the cluster is nearest."""
    inner = squares[cluster][:, cluster]
    return cluster[int(inner.kthvalue((len(cluster) + 1) // 2, dim=1).values.argmin())]


def _are_in_range(products: Tensor, dtype: torch.dtype) -> bool:
    """Whether products neither overflow nor vanish, and are no NaN."""
    largest, (low, high) = float(products.diagonal().max()), PRODUCT_RANGE[dtype]
    return largest == 0.0 or low < largest < high


def _clusters(close: Tensor) -> list[list[int]]:
    """The connected components, of two points or more, of a symmetric relation ``(m, m)``."""
    neighbours = [row.nonzero().flatten().tolist() for row in close]
    seen: set[int] = set()
    clusters = []
    for start in range(len(neighbours)):
        if start in seen or not neighbours[start]:
            continue
        seen.add(start)
        cluster = [start]
        for point in cluster:
            fresh = [other for other in neighbours[point] if other not in seen]
            seen.update(fresh)
            cluster += fresh
        clusters.append(sorted(cluster))
    return clusters
