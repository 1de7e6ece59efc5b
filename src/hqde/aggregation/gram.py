"""Inner products between rows, in pieces that add up to the same bits wherever they are computed.

Rules that look at rows as wholes need nothing but inner products. These are taken between n + 1 points, the
rows and, last, the origin (so that norms are there too), each minus a reference point. ‖x‖² + ‖y‖² - 2⟨x, y⟩
loses a small distance between large rows to cancellation, and the mean is no help: one far row moves it away
from all others. So the reference is one of the rows, in every block of columns one that most are near to.
Products are float32, with sums over blocks in float64. Pairs that lie much closer to each other than to the
reference are taken again around one of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hqde.errors import NonFiniteError

# Columns per block. Shards of a distributed aggregation are cut at multiples of it.
BLOCK = 1 << 14

# Products that are held at once: those of a few blocks, so that the checks on them are made together.
NUMBERS_AT_ONCE = 1 << 20

# A pair is taken again when ‖x - r‖² + ‖y - r‖² exceeds this many times ‖x - y‖²: 16 roundings of float32
# products, of about 2e-7 each, are the error that a squared distance may have.
MAX_CANCELLATION = 16.0
MAX_CANCELLATION_DOUBLE = 1e7
# float32 products of a block that are larger or smaller than these are taken in float64: they may overflow
# (1e38) or vanish (1e-38).
FLOAT32_RANGE = (1e-24, 1e32)


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
    work = torch.float64 if rows[0].dtype == torch.float64 else torch.float32
    space = torch.empty((len(rows) + 1) * min(BLOCK, len(rows[0])), dtype=work, device=rows[0].device)
    begins = range(0, max(1, len(rows[0])), BLOCK)
    at_once = max(1, min(64, NUMBERS_AT_ONCE // len(rows) ** 2))
    for first in range(0, len(begins), at_once):
        wholes = [slice(begin, begin + BLOCK) for begin in begins[first : first + at_once]]
        blocks = [
            rows[:, columns] if isinstance(rows, Tensor) else [row[columns] for row in rows]
            for columns in wholes
        ]
        for offset, matrix in enumerate(_block_grams(blocks, space)):
            _insert(parts, (0, first_block + first + offset), matrix)
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
        return bool(torch.isfinite(row.sum())) or bool(torch.isfinite(row).all())
    return not len(row) or bool(row.abs().max() <= MAX_MAGNITUDE)


def _block_grams(blocks: Sequence[Sequence[Tensor] | Tensor], space: Tensor) -> list[Tensor]:
    """``_block_gram`` of every block; those that need nothing but the first product are checked together."""
    num_rows = len(blocks[0])
    inner = space.new_empty(len(blocks), num_rows, num_rows)
    for place, block in zip(inner, blocks, strict=True):
        _multiply(_points(block, range(num_rows + 1), 0, space), place)
    found = torch.zeros(len(blocks), num_rows + 1, num_rows + 1, dtype=torch.float64)
    found[:, 1:, 1:] = _mirrored(inner)
    own = found.diagonal(dim1=1, dim2=2)
    sums = own.unsqueeze(1) + own.unsqueeze(2)
    close = _are_close(sums - 2.0 * found, sums, space.dtype)
    close.diagonal(dim1=1, dim2=2).fill_(False)
    in_range = _are_in_range(own.amax(dim=1), space.dtype)
    settled = in_range & ~close.flatten(1).any(dim=1)
    return [
        matrix if done else _block_gram(block, space, matrix if usable else None)
        for matrix, done, usable, block in zip(
            found, settled.tolist(), in_range.tolist(), blocks, strict=True
        )
    ]


def _block_gram(block: Sequence[Tensor] | Tensor, space: Tensor, first: Tensor | None) -> Tensor:
    """The Gram matrix ``(n + 1, n + 1)`` of one block ``(n, c)``, on the CPU.

    Args:
        first: products around the first row, changed in place; ``None`` if they leave the range of the dtype.
    """
    found = _settled(block, space, first)
    if found is None and space.dtype != torch.float64:
        wide = space.new_empty(len(space), dtype=torch.float64)
        found = _settled(block, wide, _products(block, range(len(block) + 1), 0, wide))
    if found is None:
        bad = [i for i, row in enumerate(block) if not is_measurable(row)]
        raise NonFiniteError(
            f"rows {bad} hold NaN, infinity or numbers beyond {MAX_MAGNITUDE:g}: admit updates before a rule "
            "sees them."
        )
    return found


def _settled(block: Sequence[Tensor] | Tensor, space: Tensor, products: Tensor | None) -> Tensor | None:
    """The Gram matrix around a row that most are near to, with close pairs put right.

    Args:
        products: those around the first row.
        space: to work in, of the dtype to work in: room for ``(n + 1) · c`` numbers.

    Returns:
        ``None`` if products leave the range of the dtype.
    """
    everyone = list(range(len(block) + 1))
    for attempt in range(4):  # each is nearer to the majority
        if products is None:
            return None
        squares, clusters = _squares(products, space.dtype)
        largest = max(clusters, key=len, default=[])
        if 2 * len(largest) < len(everyone) or attempt == 3:
            break
        products = _products(block, everyone, _middle(squares, largest), space)
    assert products is not None
    for cluster in clusters:
        inner = _close_squares(block, cluster, _middle(squares, cluster), space)
        if inner is None:
            return None
        position = torch.tensor(cluster)
        own = products.diagonal()[position]
        patched = 0.5 * (own.unsqueeze(0) + own.unsqueeze(1) - inner)
        products[position.unsqueeze(1), position] = patched
    return products


def _close_squares(
    block: Sequence[Tensor] | Tensor, members: list[int], reference: int, space: Tensor
) -> Tensor | None:
    """Squared distances ``(m, m)`` between points near each other, taken around one of them.

    A reference is exact to all others, so every step settles a point at least.
    """
    products = _products(block, members, members.index(reference), space)
    if products is None:
        return None
    squares, clusters = _squares(products, space.dtype)
    for cluster in clusters:
        close = [members[i] for i in cluster]
        inner = _close_squares(block, close, members[_middle(squares, cluster)], space)
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
    close = _are_close(squares, sums, dtype).fill_diagonal_(False)
    return squares, _clusters(close) if bool(close.any()) else []


def _middle(squares: Tensor, cluster: list[int]) -> int:
    """The point of a cluster from which half of the cluster is nearest."""
    inner = squares[cluster][:, cluster]
    return cluster[int(inner.kthvalue((len(cluster) + 1) // 2, dim=1).values.argmin())]


def _products(
    block: Sequence[Tensor] | Tensor, members: Sequence[int], reference: int, space: Tensor
) -> Tensor | None:
    """Inner products ``(m, m)`` float64 of points minus the point at position ``reference``.

    ``None`` if they leave the range of the dtype, as those of NaN and infinity do.

    The reference itself becomes zero and is left out of the product: n rows and the origin make n × n
    products, which is faster by a quarter than n + 1 when n is a multiple of the processor's tiles.
    """
    count = len(members)
    points = _points(block, members, reference, space)
    inner = _mirrored(_multiply(points, points.new_empty(count - 1, count - 1)))
    found = inner.new_zeros(count, count)
    before, after = slice(0, reference), slice(reference + 1, count)
    found[before, before], found[after, after] = inner[before, before], inner[reference:, reference:]
    if reference:
        found[before, after], found[after, before] = inner[before, reference:], inner[reference:, before]
    return found if count == 1 or bool(_are_in_range(found.diagonal().max(), space.dtype)) else None


def _points(
    block: Sequence[Tensor] | Tensor, members: Sequence[int], reference: int, space: Tensor
) -> Tensor:
    """Points minus the one at position ``reference``, which is left out: ``(m - 1, c)``, in ``space``."""
    origin, width, count = len(block), len(block[0]), len(members)
    points = space[: (count - 1) * width].view(count - 1, width)
    row = members[reference]
    centre = block[row].to(space.dtype) if row != origin else space.new_zeros(width)
    if isinstance(block, Tensor) and block.dtype == space.dtype and count == origin + 1 and row == 0:
        torch.sub(block[1:], centre, out=points[:-1])
        torch.neg(centre, out=points[-1])
        return points
    others = (member for member in members if member != row)
    for point, member in zip(points, others, strict=True):
        if member == origin:
            torch.neg(centre, out=point)
        else:
            torch.sub(block[member].to(space.dtype), centre, out=point)
    return points


def _multiply(points: Tensor, products: Tensor) -> Tensor:
    """Inner products ``(m, m)``, all of them or, of many points, all but the lower left quarter."""
    half = _half(len(points))
    torch.mm(points[:half], points.T, out=products[:half])
    if half < len(points):
        torch.mm(points[half:], points[half:].T, out=products[half:, half:])
    return products


def _mirrored(products: Tensor) -> Tensor:
    """What ``_multiply`` made, ``(…, m, m)``, as symmetric matrices in float64 on the CPU."""
    half = _half(products.shape[-1])
    products[..., half:, :half] = products[..., :half, half:].mT
    wide = products.double().cpu()
    return torch.add(wide, wide.mT).mul_(0.5)


def _half(count: int) -> int:
    """How many points are multiplied with all: half of them, in the tiles of processors, or all if few."""
    return count if count < 32 else round(count / 32) * 16


def _are_close(squares: Tensor, sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Which squared distances are not to be trusted, for those of both points from the reference summed."""
    return squares * (MAX_CANCELLATION if dtype == torch.float32 else MAX_CANCELLATION_DOUBLE) < sums


def _are_in_range(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether products with these largest ones neither overflow nor vanish, and are no NaN."""
    low, high = FLOAT32_RANGE if dtype == torch.float32 else (0.0, 1e300)
    return (largest == 0.0) | ((low < largest) & (largest < high))


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
