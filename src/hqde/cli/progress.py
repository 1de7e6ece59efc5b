"""Progress of a training: a live table on a terminal, one plain line per round elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from hqde.rounds import Event, RoundRecord, synchronisation_line
from hqde.topology import RoundPlan

SHOWN_WORKERS = 32  # more rows than this do not fit a terminal


class TrainingProgress:
    """Listens to a run and shows it. Use as a context manager around the run.

    Args:
        console: where to show; its ``is_terminal`` decides between table and lines.
        quiet: show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        self._steps: dict[int, tuple[int, int]] = {}
        self._last: RoundRecord | None = None
        self._plans: Sequence[RoundPlan] = ()
        self._first = 1
        self._began = time.perf_counter()
        self._shown = 0.0
        self._synchronised = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:
        """Remember what is to come."""
        self._plans, self._first, self._began = plans, first_round, time.perf_counter()

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Move a worker's bar, at most ten times a second."""
        self._steps[worker_id] = (done, total)
        now = time.perf_counter()
        if self._live is not None and now - self._shown > 0.1:
            self._shown = now
            self._live.update(self._table(), refresh=True)

    def on_round(self, record: RoundRecord) -> None:
        """Show a finished round."""
        self._last = record
        self._steps = {}
        if record.scope != "none":
            self._say(synchronisation_line(record))
        plan_ends_epoch = record.validation is not None
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif plan_ends_epoch or record.round % max(1, len(self._plans) // 50) == 0:
            self._say(self._line(record))

    def on_event(self, event: Event) -> None:
        """Show what is out of the ordinary."""
        who = "" if event.worker_id is None else f" worker {event.worker_id}:"
        self._say(f"round {event.round_index}: {event.kind}:{who} {event.reason}")

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(escape(line), soft_wrap=True)

    def _line(self, record: RoundRecord) -> str:
        losses = [w.loss for w in record.workers if w.loss is not None]
        parts = [f"round {record.round}/{len(self._plans)}", f"epoch {record.epoch}"]
        if losses:
            parts.append(f"train loss {sum(losses) / len(losses):.4f}")
        if record.validation is not None:
            parts.append(_validation(record))
        if record.learning_rate is not None:
            parts.append(f"LR {record.learning_rate:.2e}")
        parts.append(f"{_samples_per_s(record):,.0f} samples/s")
        parts.append(f"ETA {self._eta(record)}")
        return " · ".join(parts)

    def _eta(self, record: RoundRecord) -> str:
        done = record.round - self._first + 1
        left = len(self._plans) - record.round
        seconds = (time.perf_counter() - self._began) / max(1, done) * left
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"

    def _table(self) -> Group:
        record = self._last
        table = Table(box=None, pad_edge=False)
        for name in ("worker", "group", "round", "loss", "accuracy", "LR", "samples/s", "status"):
            table.add_column(name, justify="left" if name == "status" else "right")
        workers = record.workers if record is not None else ()
        count = max(len(workers), max(self._steps, default=-1) + 1)
        for worker in range(min(count, SHOWN_WORKERS)):
            row = workers[worker] if worker < len(workers) else None
            done, total = self._steps.get(worker, (0, 0))
            here = "" if record is None else str(record.round)
            table.add_row(
                str(worker),
                "" if row is None else str(row.group),
                f"{done}/{total}" if total else here,
                "" if row is None or row.loss is None else f"{row.loss:.4f}",
                "" if row is None or row.accuracy is None else f"{row.accuracy:.3f}",
                "" if row is None or row.lr is None else f"{row.lr:.2e}",
                "" if row is None or not row.seconds else f"{row.samples / row.seconds:,.0f}",
                "" if row is None else row.status,
            )
        if count > SHOWN_WORKERS:
            table.add_row("…", f"{count - SHOWN_WORKERS} more")
        bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        finished = 0 if record is None else record.round
        inside = sum(done / total for done, total in self._steps.values()) / max(1, count)
        eta = "" if record is None else f" · ETA {self._eta(record)} · {_validation(record)}"
        bar.add_task(
            f"round {min(finished + 1, len(self._plans))}/{len(self._plans)}{eta}",
            total=1000 * len(self._plans),
            completed=int(1000 * (finished + inside)),
        )
        return Group(table, bar)


def _validation(record: RoundRecord) -> str:
    validation = record.validation
    if validation is None:
        return ""
    if validation.accuracy is None:
        return f"validation loss {validation.loss:.4f} RMSE {validation.rmse:.4g}"
    text = f"ensemble validation accuracy {validation.accuracy:.4f} NLL {validation.loss:.4f}"
    if validation.effective_members is not None and len(validation.members) > 1:
        text += f" effective members {validation.effective_members:.2f}"
    return text


def _samples_per_s(record: RoundRecord) -> float:
    return sum(w.samples for w in record.workers) / max(record.phases.get("train", 0.0), 1e-9)
