"""A listener that keeps what happened, and tells it through ``logging``."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hqde.rounds.events import Event, RoundRecord, synchronisation_line
from hqde.topology import RoundPlan

logger = logging.getLogger("hqde")

# What a user must hear of even when nothing is configured: logging shows warnings by default.
_ALARMING = frozenset({"rejected", "failed", "skipped"})


class RoundLog:
    """Keeps the records and events of a run; logs each to the logger ``hqde``.

    Rounds and harmless events are logged at INFO; refused updates, failed workers and skipped groups at
    WARNING.

    Attributes:
        records: one per round, in order.
        events: what was out of the ordinary, in order.

    Example:
        >>> log = RoundLog()
        >>> log.on_event(Event("resumed", 3, None, "from the checkpoint of round 3"))
        >>> [event.kind for event in log.events]
        ['resumed']
    """

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.events: list[Event] = []
        self._num_rounds = 0

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:
        """Remember how many rounds there will be."""
        self._num_rounds = len(plans)
        logger.info("round %d of %d is next", first_round, self._num_rounds)

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Steps are not kept."""

    def on_round(self, record: RoundRecord) -> None:
        """Keep the record; log the round, and the synchronisation if there was one."""
        self.records.append(record)
        if record.scope != "none":
            logger.info("%s", synchronisation_line(record))
        parts = [f"round {record.round}/{self._num_rounds}", f"epoch {record.epoch}"]
        loss = record.mean_loss
        if loss is not None:
            parts.append(f"train loss {loss:.4f}")
        if record.validation is not None:
            parts.append(f"ensemble validation loss {record.validation.loss:.4f}")
        logger.info("%s", " · ".join(parts))

    def on_event(self, event: Event) -> None:
        """Keep and log the event."""
        self.events.append(event)
        level = logging.WARNING if event.kind in _ALARMING else logging.INFO
        who = "" if event.worker_id is None else f" worker {event.worker_id}:"
        logger.log(level, "round %d: %s:%s %s", event.round_index, event.kind, who, event.reason)
