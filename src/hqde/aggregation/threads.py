"""Work that is spread over threads. Which thread does which piece makes no difference to a result."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

# So many operations are done by one thread before another one is awake.
LEAST_OPERATIONS = 1e7

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def spread(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """What ``work`` makes of every piece, on as many threads as PyTorch may use; this one is among them.

    PyTorch itself does not spread operations on few columns.

    >>> spread(str, [1, 2, 3])
    ['1', '2', '3']
    """
    num_helpers = min(torch.get_num_threads(), len(pieces)) - 1
    if num_helpers < 1:
        return [work(piece) for piece in pieces]
    found: dict[int, Result] = {}
    left, inference = iter(enumerate(pieces)), torch.is_inference_mode_enabled()

    def help_out() -> None:
        with torch.inference_mode(inference):  # is a thread's own
            for place, piece in left:  # whoever is free takes the next
                found[place] = work(piece)

    helpers = [_pool(num_helpers).submit(help_out) for _ in range(num_helpers)]
    try:
        help_out()
    finally:
        started = [helper for helper in helpers if not helper.cancel()]  # the others came too late to help
        wait(started)
    for helper in started:
        helper.result()
    return [found[place] for place in range(len(pieces))]


def spread_runs(
    work: Callable[[slice], Result], begin: int, end: int, block: int, *, operations: float
) -> list[Result]:
    """What ``work`` makes of runs of blocks of columns, in order: of all at once, where threads do not pay.

    Args:
        work: on some whole blocks; the last one may be cut off by ``end``.
        begin, end: columns.
        block: columns of a block.
        operations: multiplications that all of it takes, about.

    >>> spread_runs(str, 0, 5, 2, operations=5)
    ['slice(0, 5, None)']
    """
    threads = torch.get_num_threads() if operations >= LEAST_OPERATIONS else 1
    blocks = -(-(end - begin) // block)
    in_run = blocks if threads == 1 else -(-blocks // (2 * threads))
    return spread(work, slices(begin, end, block * max(1, in_run)))


def slices(begin: int, end: int, width: int) -> list[slice]:
    """Columns in pieces of so many.

    >>> slices(0, 5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + width, end)) for first in range(begin, end, width)]


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads that stay: to start two takes as long as a rule on small rows."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="columns")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
