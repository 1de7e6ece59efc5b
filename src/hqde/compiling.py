"""Loops that numba turns into machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


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
