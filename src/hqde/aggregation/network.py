"""Sorting networks that only find the positions somebody asks for."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

Role = Literal["lost", "summed"] | int
"""What becomes of a sorted position: nobody reads it, it goes into the sum, or it is read as itself."""


class Comparator(NamedTuple):
    """The smaller of wires ``low`` and ``high`` goes to ``low``, the larger to ``high``, where it is kept."""

    low: int
    high: int
    keeps_low: bool
    keeps_high: bool


@lru_cache(maxsize=512)
def network(num_wires: int, summed: range, read: tuple[int, ...] = ()) -> tuple[Comparator, ...]:
    """A network after which wire i holds the i-th smallest of n values, for the positions asked for.

    Batcher's odd-even merge sort, and from it everything is left out that does not show: comparators whose
    outputs nobody reads, halves of comparators, and comparators between two wires that end in the same sum.

    Args:
        num_wires: n ≥ 1.
        summed: positions of which only the sum is wanted; they come in any order among themselves.
        read: positions that are wanted each by itself.

    Example:
        >>> len(network(16, range(16))), len(network(16, range(7, 9)))
        (0, 52)

    Source: Batcher 1968; Knuth, The Art of Computer Programming, vol. 3, 5.3.4 (pruned to selection).
    """
    roles: list[Role] = ["lost"] * num_wires
    for position in summed:
        roles[position] = "summed"
    for position in read:
        roles[position] = position
    kept: list[Comparator] = []
    # From the end backwards: the role of a wire is what happens to its value from there on.
    for low, high in reversed(_merge_sort(num_wires)):
        if roles[low] == roles[high]:  # distinct read positions differ, and so do wires inside the network
            continue
        kept.append(Comparator(low, high, roles[low] != "lost", roles[high] != "lost"))
        roles[low] = roles[high] = -1 - len(kept)
        # The two inputs of a comparator may change places: they have one role, its own.
    return tuple(reversed(kept))


def _merge_sort(num_wires: int) -> list[tuple[int, int]]:
    """Batcher's comparators for n wires: those of the next power of two that touch no wire beyond n."""
    size = 1
    while size < num_wires:
        size *= 2
    pairs = []
    p = 1
    while p < size:
        k = p
        while k >= 1:
            for j in range(k % p, size - k, 2 * k):
                for i in range(min(k, size - j - k)):
                    low, high = i + j, i + j + k
                    if low // (2 * p) == high // (2 * p) and high < num_wires:
                        pairs.append((low, high))
            k //= 2
        p *= 2
    return pairs
