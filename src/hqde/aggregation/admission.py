"""The checks an update must pass before any rule sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hqde.aggregation.update import RemoteDelta, Update, count_nonfinite


@dataclass(frozen=True)
class Rejection:
    """An update that no rule will see, and why."""

    worker_id: int
    reason: str


def admit(
    updates: Sequence[Update], *, round_index: int, size: int, num_integers: int
) -> tuple[list[Update], list[Rejection]]:
    """Sort updates into those a rule may see and those it may not.

    An update is refused when it belongs to another round, when its worker has handed one in already (the
    lowest sound attempt counts), when its length or dtype does not fit the layout, or when its delta or its
    training loss is not finite.

    Args:
        updates: in any order.
        round_index: the round being aggregated.
        size: length ``d`` the deltas must have.
        num_integers: length ``k`` the integer buffers must have.

    Returns:
        the admitted updates ordered by worker id (so that arrival order never changes a result), and the
        rejections.

    Example:
        >>> nan = torch.tensor([0.0, float("nan")])
        >>> bad = Update(3, 1, 0, nan, torch.empty(0, dtype=torch.int64), 8, 0.5, 0.9, 1e-3, 1.0, 0.1)
        >>> admit([bad], round_index=1, size=2, num_integers=0)[1][0].reason
        '1 of 2 elements of its delta are not finite'
    """
    admitted: list[Update] = []
    rejected: list[Rejection] = []
    seen: set[int] = set()
    for update in sorted(updates, key=lambda u: (u.worker_id, u.attempt)):
        reason = _fault(update, round_index, size, num_integers)
        if reason is None and update.worker_id in seen:
            reason = "it handed in a second update for the same round"
        if reason is None:
            seen.add(update.worker_id)
            admitted.append(update)
        else:
            rejected.append(Rejection(update.worker_id, reason))
    return admitted, rejected


def _fault(update: Update, round_index: int, size: int, num_integers: int) -> str | None:
    if update.round_index != round_index:
        return f"its update belongs to round {update.round_index}, not {round_index}"
    delta = update.delta
    if delta.shape != (size,) or not delta.dtype.is_floating_point:
        return f"its delta is {delta.dtype} of {tuple(delta.shape)}, expected floating ({size},)"
    if update.integers.shape != (num_integers,) or update.integers.dtype != torch.int64:
        found = f"{update.integers.dtype} of {tuple(update.integers.shape)}"
        return f"its integer buffers are {found}, expected torch.int64 ({num_integers},)"
    bad = delta.num_nonfinite if isinstance(delta, RemoteDelta) else count_nonfinite(delta)
    if bad:
        return f"{bad} of {size} elements of its delta are not finite"
    if update.num_samples > 0 and not math.isfinite(update.loss):
        return f"its training loss is {update.loss}"
    return None
