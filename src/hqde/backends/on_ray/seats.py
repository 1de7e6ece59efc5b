"""What the driver notes of each worker: its seat, its order under way, its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hqde.training import Order, WorkerSpec


@dataclass(frozen=True)
class Kept:
    """A worker's packed state: a reference to it, and its name in the weight store if it is there."""

    ref: Any
    name: str = ""


@dataclass
class Running:
    """An order under way: what was asked, and references to what comes back.

    Attributes:
        order, bounds: what was asked.
        before: the worker's state when the round began; ``None`` before its first.
        began: when it was asked.
        report, state, pieces: what comes back.
    """

    order: Order
    bounds: Sequence[tuple[int, int]]
    before: Kept | None
    began: float
    report: Any
    state: Any
    pieces: list[Any]


@dataclass
class Seat:
    """One worker: its actor, and the state it had when its last round was accepted.

    Attributes:
        spec: what to build.
        actor: its handle; ``None`` while nobody is hired.
        node: id of the node it is on.
        state: its ``WorkerState``; ``None`` before the first round.
        held_round: the round whose start the actor still holds; ``None`` if it holds none.
        restore: the actor does not stand where ``state`` says; the next order must put it there.
        last: the last order it finished, for as long as its delta may be asked for again.
    """

    spec: WorkerSpec
    actor: Any = None
    node: str = ""
    state: Kept | None = None
    held_round: int | None = None
    restore: bool = False
    last: Running | None = None
