"""The threads that PyTorch's own operations use, for loops of ours."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def over_slices(count: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` with slices of ``range(count)``, one for each of PyTorch's threads, side by side.

    To begin and to end takes about 20 µs. ``work`` gains where it lets go of Python's lock, as compiled loops
    do. The threads are those that PyTorch's operations wait with; others would have to take cores from
    them, which spin. Where they cannot be had, the slices are worked on one after the other.

    Args:
        count: what is shared out.
        work: told the slice. What it raises is raised here, when all have ended.

    Example:
        >>> squares = [0] * 5
        >>> def fill(part):
        ...     for i in range(5)[part]:
        ...         squares[i] = i * i
        >>> over_slices(5, fill)
        >>> squares
        [0, 1, 4, 9, 16]
    """
    threads = min(torch.get_num_threads(), count)
    slices = [slice(i * count // threads, (i + 1) * count // threads) for i in range(threads)]
    start = _start_of_team() if threads > 1 else None
    if start is None:
        for part in slices:
            work(part)
        return
    waiting, errors = iter(slices), []

    def member(_: Any) -> None:  # of the team, which may have fewer of them than asked for
        try:
            for part in waiting:
                work(part)
        except BaseException as error:  # noqa: BLE001 - it cannot leave through the library
            errors.append(error)

    start(_TASK(member), None, threads, 0)
    if errors:
        raise errors[0]


def has_team() -> bool:
    """Whether PyTorch's threads can be had."""
    return _start_of_team() is not None


@cache
def _start_of_team() -> Any:
    """What GNU's OpenMP starts a parallel region with, where PyTorch has loaded that (or Intel's, which has
    it too); PyTorch puts its names where everybody finds them."""
    if sys.platform != "linux":
        return None
    start = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if start is not None:
        start.argtypes, start.restype = (_TASK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return start
