"""Dropout masks of stacked workers, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from hqde.compiling import compiled


@compiled()
def masks(words: Any, first: int, limits: Any, scales: Any, found: Any) -> None:
    """Of draws ``(w, k)``, int16: ``scales (w,)`` where ``limits (w,)`` are reached, else 0.

    Args:
        first: the draw that each worker's masks begin with.
        found: ``(w, c)``, c ≤ k - first, to be filled.
    """
    workers, count = found.shape
    zero = np.float32(0.0)
    for w in range(workers):
        limit, scale, own = limits[w], scales[w], words[w, first : first + count]
        for k in range(count):
            found[w, k] = scale if own[k] >= limit else zero
