"""From what Ray raises to what the engine is told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from hqde.backends.base import Failure
from hqde.training import Order


def swallow(refs: Sequence[Any]) -> None:
    """A failed call fails through each of its references; Ray logs those that nobody looked at."""
    for ref in refs:
        with contextlib.suppress(RayError):
            ray.get(ref)


def failure_of(order: Order, reason: str, kind: Any) -> Failure:
    """An order's failure."""
    return Failure(order.worker_id, order.round_index, order.attempt, reason, kind)


def cause_of(error: RayTaskError) -> BaseException:
    """What the call itself raised."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error


def first_line(error: BaseException) -> str:
    """The first line of an error, or its name: Ray's sentences are pages long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
