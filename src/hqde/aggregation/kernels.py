"""Loops compiled by numba.

Inner products of rows: half of the multiplications of a matrix product, and no copies. And what takes many
small steps on the Gram matrix, where a call of PyTorch or NumPy costs more than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from hqde.compiling import compiled

TILE = 4  # 4 × 4 sums and the 8 numbers they are made of fit the registers of a processor
CHUNK = 1024  # columns whose products are summed before they join the total in float64
TINY = 1e-300  # keeps a quotient finite where all distances are 0
GAP = 16  # between rows of the workspace: at multiples of 4 KiB all would fall on the same lines of a cache


def _typed_pointer(_: Any, address: Any, like: Any) -> Any:
    signature = types.CPointer(like.dtype)(address, like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


_pointer: Any = intrinsic(_typed_pointer)  # (address, array): a pointer to numbers like those of the array


@compiled(sums_in_any_order=True)
def centred_products(addresses: Any, reference: int, width: int, points: Any, sums: Any, found: Any) -> None:
    """Inner products of vectors minus one of them.

    Args:
        addresses: ``(m,)`` int64: where the ``width`` numbers of each vector begin.
        reference: position of the vector that is taken from all.
        points: workspace ``(k, CHUNK + GAP)``, k ≥ m - 1 a multiple of ``TILE``; of the dtype of the vectors.
        sums: workspace ``(k, k)`` float64.
        found: ``(m, m)`` float64: the products; 0 for the reference.
    """
    count, padded = len(addresses), len(points)
    zero = points.dtype.type(0)
    sums[:] = 0.0
    points[count - 1 :] = zero
    for begin in range(0, width, CHUNK):
        columns = min(CHUNK, width - begin)
        step = begin * points.itemsize
        for member in range(count):
            if member == reference:
                continue
            point = points[member if member < reference else member - 1]
            row = carray(_pointer(addresses[member] + step, points), columns)
            centre = carray(_pointer(addresses[reference] + step, points), columns)
            for k in range(columns):
                point[k] = row[k] - centre[k]
        for i in range(0, padded, TILE):
            for j in range(i, padded, TILE):
                s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
                s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
                for k in range(columns):
                    a0, a1, a2, a3 = points[i, k], points[i + 1, k], points[i + 2, k], points[i + 3, k]
                    b0, b1, b2, b3 = points[j, k], points[j + 1, k], points[j + 2, k], points[j + 3, k]
                    s00, s01, s02, s03 = s00 + a0 * b0, s01 + a0 * b1, s02 + a0 * b2, s03 + a0 * b3
                    s10, s11, s12, s13 = s10 + a1 * b0, s11 + a1 * b1, s12 + a1 * b2, s13 + a1 * b3
                    s20, s21, s22, s23 = s20 + a2 * b0, s21 + a2 * b1, s22 + a2 * b2, s23 + a2 * b3
                    s30, s31, s32, s33 = s30 + a3 * b0, s31 + a3 * b1, s32 + a3 * b2, s33 + a3 * b3
                first, second = (s00, s01, s02, s03), (s10, s11, s12, s13)
                third, fourth = (s20, s21, s22, s23), (s30, s31, s32, s33)
                for column in range(TILE):
                    sums[i, j + column] += first[column]
                    sums[i + 1, j + column] += second[column]
                    sums[i + 2, j + column] += third[column]
                    sums[i + 3, j + column] += fourth[column]
    for i in range(count - 1):
        for j in range(i, count - 1):
            one, other = (i if i < reference else i + 1), (j if j < reference else j + 1)
            found[one, other] = found[other, one] = sums[i, j]


@compiled()
def combined(addresses: Any, factors: Any, total: Any) -> None:
    """Σᵢ factorᵢ · vectorᵢ, four terms at a time.

    Args:
        addresses: ``(n,)`` int64: where the numbers of each vector begin.
        factors: ``(n,)``, of the dtype of the vectors.
        total: ``(c,)``, to be filled; of that dtype too.
    """
    count = len(addresses)
    for begin in range(0, len(total), CHUNK):
        part = total[begin : begin + CHUNK]
        columns = len(part)
        part[:] = total.dtype.type(0)
        step = begin * total.itemsize
        for place in range(0, count - 3, 4):
            first = carray(_pointer(addresses[place] + step, total), columns)
            second = carray(_pointer(addresses[place + 1] + step, total), columns)
            third = carray(_pointer(addresses[place + 2] + step, total), columns)
            fourth = carray(_pointer(addresses[place + 3] + step, total), columns)
            f0, f1, f2, f3 = factors[place], factors[place + 1], factors[place + 2], factors[place + 3]
            for k in range(columns):
                part[k] += (f0 * first[k] + f1 * second[k]) + (f2 * third[k] + f3 * fourth[k])
        for place in range(count - count % 4, count):
            row = carray(_pointer(addresses[place] + step, total), columns)
            for k in range(columns):
                part[k] += factors[place] * row[k]


@compiled()
def has_close_pair(products: Any, cancellation: float) -> bool:
    """Whether two points are so near, for their distances to the reference, that their own is in doubt.

    Args:
        products: ``(m, m)`` float64 inner products of points minus a reference.
        cancellation: how many times their own squared distance those to the reference may sum to.
    """
    count = len(products)
    for i in range(count):
        for j in range(i):
            sums = products[i, i] + products[j, j]
            if (sums - 2.0 * products[i, j]) * cancellation < sums:
                return True
    return False


@compiled()
def block_products(
    addresses: Any, size: int, block: int, limits: Any, points: Any, sums: Any, found: Any, settled: Any
) -> None:
    """``centred_products`` around the first vector, of every block of columns.

    Args:
        addresses: ``(m,)`` int64: where the ``size`` numbers of each vector begin; of the last one there are
            ``block``, the same for all.
        block: columns of a block; the last one may have fewer.
        limits: the least and the greatest product to be trusted, and ``cancellation`` of ``has_close_pair``.
        points, sums: as there.
        found: ``(b, m, m)`` float64: the products.
        settled: ``(b,)`` bool: whether these can be trusted.
    """
    low, high, cancellation = limits
    moved = addresses.copy()
    for place in range(len(found)):
        products = found[place]
        centred_products(moved, 0, min(block, size - place * block), points, sums, products)
        largest, in_range = 0.0, True
        for i in range(len(products)):
            in_range = in_range and products[i, i] < high  # a NaN is not
            largest = max(largest, products[i, i])
        in_range = in_range and (largest == 0.0 or low < largest)
        settled[place] = in_range and not has_close_pair(products, cancellation)
        moved[:-1] += block * points.itemsize


@compiled()
def geometric_median(
    gram: Any, shares: Any, tolerance: float, max_iterations: int, rounding: float, weights: Any
) -> int:
    """Weights of the geometric median: of a row that is the optimum itself, or by Weiszfeld's iteration.

    Args:
        gram: ``(n, n)`` float64 inner products of the rows minus any point.
        shares: ``(n,)`` float64.
        tolerance: greatest distance from the optimum, as a fraction of the objective.
        max_iterations: at most.
        rounding: what float64 makes of equal points, relative to what their distance is the difference of.
        weights: ``(n,)`` float64, to be filled.

    Returns:
        Iterations; -1 if ``max_iterations`` did not suffice.
    """
    count = len(shares)
    distances = np.empty(count)
    towards = np.empty(count)
    if _starts_at_optimum(gram, shares, rounding, weights):
        return 0
    least = 0.0
    for iteration in range(1, max_iterations + 1):
        middle = _times(gram, weights, towards)
        for i in range(count):
            distances[i] = np.sqrt(max(gram[i, i] - 2.0 * towards[i] + middle, 0.0))
        if iteration == 1:
            least = rounding * _share_median(distances, shares, rounding) + TINY
        total = 0.0
        for i in range(count):
            distances[i] = shares[i] / max(distances[i], least)
            total += distances[i]
        for i in range(count):
            following = distances[i] / total
            distances[i] = following - weights[i]  # the step
            weights[i] = following
        # The gradient is the sum of pulls times the step; its length times twice the objective bounds it.
        if 2.0 * total * np.sqrt(max(_times(gram, distances, towards), 0.0)) <= tolerance:
            return iteration
    return -1


@compiled()
def _starts_at_optimum(gram: Any, shares: Any, rounding: float, weights: Any) -> bool:
    """Weights of the best row if it is the optimum, else of the point that one step leads to from it.

    It is, if the others pull less than its own share holds.
    """
    count = len(shares)
    best, least = 0, np.inf
    away, towards = np.zeros(count), np.zeros(count)
    for row in range(count):
        objective = 0.0
        for i in range(count):
            towards[i] = _distance(gram, row, i, rounding)
            objective += shares[i] * towards[i]
        if objective < least:
            best, least = row, objective
            away[:] = towards
    own = total = 0.0
    for i in range(count):
        if away[i] == 0.0:
            own += shares[i]
        weights[i] = shares[i] / away[i] if away[i] > 0.0 else 0.0
        total += weights[i]
    weights[best] -= total  # Σᵢ pullᵢ (rowᵢ - best), as weights that sum to 0
    slope = np.sqrt(max(_times(gram, weights, towards), 0.0))
    weights[best] += total
    if slope <= own:
        weights[:] = 0.0
        weights[best] = 1.0
        return True
    step = 1.0 - own / slope
    for i in range(count):
        weights[i] *= step / total
    weights[best] += 1.0 - step
    return False


@compiled()
def _distance(gram: Any, one: int, other: int, rounding: float) -> float:
    sums = gram[one, one] + gram[other, other]
    square = sums - 2.0 * gram[one, other]
    return np.sqrt(square) if square > rounding * sums else 0.0


@compiled()
def _times(gram: Any, weights: Any, towards: Any) -> float:
    """``weightsᵀ gram weights``, and ``gram weights`` in ``towards``."""
    count, total = len(weights), 0.0
    for i in range(count):
        towards[i] = 0.0
        for j in range(count):
            towards[i] += gram[i, j] * weights[j]
        total += weights[i] * towards[i]
    return total


@compiled()
def _share_median(values: Any, shares: Any, rounding: float) -> float:
    """The smallest of the values that half of the shares do not exceed."""
    order = np.argsort(values, kind="mergesort")
    half, reached = 0.5 * shares.sum() * (1.0 - rounding), 0.0
    for place in order:
        reached += shares[place]
        if reached >= half:
            return values[place]
    return values[order[-1]]
