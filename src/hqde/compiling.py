"""Loops that numba turns into machine code, and the threads of matrix products in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from numba import njit
from threadpoolctl import ThreadpoolController


def compiled(*, sums_in_any_order: bool = False) -> Callable[[Any], Any]:
    """A loop in machine code, kept for later processes where there is a directory to keep it in.

    It lets other threads run. Floating-point rules are those of IEEE 754 but for fused products and sums.
    To import this takes half a second: whoever calls such a loop imports its module then.

    Args:
        sums_in_any_order: let the compiler add many terms of a sum at once. Results repeat on one kind of
            processor, and may differ in their last bits on another.
    """

    def compile_loop(loop: Any) -> Any:
        fast = {"contract", "reassoc"} if sums_in_any_order else {"contract"}
        options: Any = {"nogil": True, "error_model": "numpy", "fastmath": fast}
        try:
            return njit(cache=True, **options)(loop)
        except RuntimeError:  # numba found no directory that it may write to
            return njit(**options)(loop)

    return compile_loop


class _Limit:
    """Threads of the library, while somebody asks for a limit; whoever came first sets it."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._open: Any = None

    @contextmanager
    def held(self, threads: int) -> Iterator[None]:
        """For as long as the block runs, and others that began meanwhile."""
        with self._lock:
            if not self._users:
                self._open = _libraries().limit(limits=threads, user_api="blas")
                self._open.__enter__()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._open.__exit__(None, None, None)


product_threads = _Limit().held
"""``with product_threads(1):`` matrix products in compiled loops (of SciPy) take so many threads each."""


@cache
def _libraries() -> ThreadpoolController:
    """Those of this process that have threads of their own."""
    import scipy.linalg.cython_blas  # noqa: F401 - where numba looks for products

    return ThreadpoolController()
