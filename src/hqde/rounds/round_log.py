"""A listener that keeps what happened, and tells it through ``logging``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TextIO

from hqde.rounds.events import Event, RoundRecord, synchronisation_line
from hqde.topology import RoundPlan

logger = logging.getLogger("hqde")

# What a user must hear of even when nothing is configured: logging shows warnings by default.
_ALARMING = frozenset({"rejected", "failed", "backed_off", "skipped", "alert"})


class RoundLog:
    """Keeps the records and events of a run; logs each to the logger ``hqde``.

    Rounds and harmless events are logged at INFO; refused updates, failed workers, want of memory and skipped
    groups at WARNING.

    Args:
        echo: a text stream that gets the same lines.

    Attributes:
        records: one per round, in order.
        events: what was out of the ordinary, in order.

    Example:
        >>> log = RoundLog()
        >>> log.on_event(Event("resumed", 3, None, "from the checkpoint of round 3"))
        >>> [event.kind for event in log.events]
        ['resumed']
    """

    def __init__(self, echo: TextIO | None = None) -> None:
        self._echo = echo
        self.records: list[RoundRecord] = []
        self.events: list[Event] = []
        self._num_rounds = 0

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:
        """Remember how many rounds there will be."""
        self._num_rounds = len(plans)
        logger.debug("round %d of %d is next", first_round, self._num_rounds)

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Steps are not kept."""

    def on_round(self, record: RoundRecord) -> None:
        """Keep the record; log the round, and the synchronisation if there was one."""
        self.records.append(record)
        if record.scope != "none":
            self._tell(logging.INFO, synchronisation_line(record))
        parts = [f"round {record.round}/{self._num_rounds}", f"epoch {record.epoch}"]
        loss = record.mean_loss
        if loss is not None:
            parts.append(f"train loss {loss:.4f}")
        if record.validation is not None:
            parts.append(f"ensemble validation loss {record.validation.loss:.4f}")
        self._tell(logging.INFO, " · ".join(parts))

    def on_event(self, event: Event) -> None:
        """Keep and log the event."""
        self.events.append(event)
        level = logging.WARNING if event.kind in _ALARMING else logging.INFO
        who = "" if event.worker_id is None else f" worker {event.worker_id}:"
        self._tell(level, f"round {event.round_index}: {event.kind}:{who} {event.reason}")

    def _tell(self, level: int, line: str) -> None:
        logger.log(level, "%s", line)
        if self._echo is not None:
            self._echo.write(f"{line}\n")
            self._echo.flush()
