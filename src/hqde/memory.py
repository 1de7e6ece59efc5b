"""Freed memory that a process keeps for its next tensors."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# As malloc.h of glibc has them.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEEP = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1}
CORES_PER_HEAP = 8  # where too many threads share a heap, they wait for each other
# Where glibc's own thresholds end up in a process that frees large blocks: they grow to these and no further.
AS_EVER = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}

_lock = threading.Lock()
_inside = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, what tensors on the CPU free stays with the process, for the next ones.

    Training asks for the same large blocks in every step. The C library of Linux gives most of them back to
    the kernel in between, and then each 4 KiB costs a page fault: a tenth to a fifth of the processor time of
    a small convolutional network. At the end what is unused is given back. May be nested, and used from
    several threads; does nothing where the C library is another.

    Threads that begin from here on share heaps (`share_heaps`), and that stays so.

    Example:
        >>> import torch
        >>> with freed_memory_kept():
        ...     sums = [float(torch.ones(1000, 1000).sum()) for _ in range(3)]
        >>> sums
        [1000000.0, 1000000.0, 1000000.0]

    Source: mallopt(3), malloc_trim(3).
    """
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _set(KEEP)
            share_heaps()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set(AS_EVER)
                _call("malloc_trim", 0)


def share_heaps() -> None:
    """From here on threads that begin share one heap for every eight cores.

    The C library of Linux gives each a heap of its own, in pieces of 64 MiB which large blocks do not fill;
    sharing takes a third off the peak of workers that train side by side. Heaps that threads had before stay
    in use, so this comes before the first threads; in a process that has had more than eight it does
    nothing. Whoever sets ``MALLOC_ARENA_MAX`` is obeyed.

    Source: mallopt(3).
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
        _set({M_ARENA_MAX: max(1, cores // CORES_PER_HEAP)})


def _set(thresholds: dict[int, int]) -> None:
    for option, value in thresholds.items():
        _call("mallopt", option, value)


def _call(name: str, *arguments: int) -> None:
    function: Callable[..., int] | None = None
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
