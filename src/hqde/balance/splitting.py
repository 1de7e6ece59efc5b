"""From shares to whole samples, and shares that starve nobody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hqde.errors import PreconditionError

Floats = NDArray[np.float64]
Numbers = Sequence[float] | Floats


def split_by_shares(total: int, shares: Numbers) -> list[int]:
    """Whole sample counts that follow the shares and sum to ``total``, by largest remainder.

    count_k = ⌊total · share_k⌋, plus one for the largest remainders until all are dealt; ties go to the
    lowest worker. A worker left with nothing gets one from whoever stands highest above its quota.

    Args:
        total: samples to deal out, at least 0.
        shares: (n,) fractions that sum to 1.

    Returns:
        n counts that sum to ``total``, each at least 1 where ``total >= n``.

    Raises:
        PreconditionError: a negative total, no shares, or shares that are negative, not finite, or sum to
            something else than 1.

    Example:
        >>> split_by_shares(10, [0.5, 0.25, 0.25])
        [5, 3, 2]
        >>> split_by_shares(3, [0.98, 0.01, 0.01])
        [1, 1, 1]
    """
    wanted = np.asarray(shares, dtype=np.float64)
    if total < 0:
        raise PreconditionError(f"the total to split must be at least 0, got {total}")
    if wanted.ndim != 1 or not len(wanted) or not (np.isfinite(wanted) & (wanted >= 0)).all():
        raise PreconditionError(f"shares must be a list of finite fractions of at least 0, got {shares}")
    if abs(wanted.sum() - 1) > 1e-6:
        raise PreconditionError(f"shares must sum to 1, got {wanted.sum():.6g}; divide them by their sum")
    quotas = total * (wanted / wanted.sum())
    counts = np.floor(quotas).astype(np.int64)
    # rounded, so that remainders which are equal tie, whatever their last bits say
    first = np.argsort(np.round(counts - quotas, 9), kind="stable")
    counts[first[: total - int(counts.sum())]] += 1
    if total >= len(counts):
        for worker in np.flatnonzero(counts == 0):
            counts[np.argmax(np.where(counts > 1, counts - quotas, -np.inf))] -= 1
            counts[worker] = 1
    return [int(count) for count in counts]


def shares_with_floor(speeds: Floats, floor: float) -> Floats:
    """Shares in proportion to ``speeds``, but none below ``floor`` of an equal share.

    Who would fall below ``floor / n`` gets just that, and the others share the rest in proportion.

    Args:
        speeds: (n,) positive numbers.
        floor: fraction of the equal share in (0, 1).

    Returns:
        (n,) float64 that sum to 1, each at least ``floor / n``.

    Example:
        >>> shares_with_floor(np.array([3.0, 1.0]), 0.2)
        array([0.75, 0.25])
        >>> shares_with_floor(np.array([99.0, 1.0]), 0.2)
        array([0.9, 0.1])
    """
    least = floor / len(speeds)
    held = np.zeros(len(speeds), dtype=bool)
    relative = speeds / speeds.max()
    while True:
        rest = (1 - least * held.sum()) / relative[~held].sum()
        shares = np.where(held, least, relative * rest)
        below = ~held & (shares < least)
        if not below.any() or (below | held).all():
            return shares
        held |= below
