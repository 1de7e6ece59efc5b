"""A run directory that grows, read bit by bit: what there is to see of the run just now."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hqde.reporting.reading import check_run

KEPT_SAMPLES = 600
KEPT_ROUNDS = 240
KEPT_EVENTS = 200
# Nothing new for so long, and the run is probably not running.
QUIET_S = 60.0

Json = Mapping[str, Any]


class Tail:
    """The new records of a JSON-lines file, each time it is asked.

    A last line without its newline is left for the next time; a broken line is counted and passed over. One
    that was replaced by a shorter one (a resumed run drops rounds) is read from its start.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0
        self._offset = 0
        self._file_id: int | None = None

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file was read from its start, and the records since the last time."""
        try:
            with self.path.open("rb") as file:
                size, file_id = self.path.stat().st_size, self.path.stat().st_ino
                anew = self._offset == 0 or size < self._offset or file_id != self._file_id
                self._file_id = file_id
                if anew:
                    self._offset = self.broken = 0
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return False, []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return anew, list(self._records(whole))

    def _records(self, text: bytes) -> Iterator[dict[str, Any]]:
        for line in text.split(b"\n"):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
            else:
                self.broken += 1


@dataclass
class WorkerView:
    """A worker as it stands.

    Attributes:
        worker: its id.
        last: its part of the newest round it was in.
        losses: of the newest rounds, oldest first.
        seconds: likewise.
        rejected: rounds in which its update was refused.
        failed: rounds that it failed.
    """

    worker: int
    last: Json = field(default_factory=dict)
    losses: deque[float | None] = field(default_factory=lambda: deque(maxlen=KEPT_ROUNDS))
    seconds: deque[float | None] = field(default_factory=lambda: deque(maxlen=KEPT_ROUNDS))
    rejected: int = 0
    failed: int = 0

    @property
    def samples_per_s(self) -> float | None:
        """Examples per second in its newest round."""
        seconds, samples = self.last.get("seconds"), self.last.get("samples")
        return samples / seconds if seconds and samples else None

    @property
    def data_share(self) -> float | None:
        """Share of the round that it waited for batches."""
        seconds, waited = self.last.get("seconds"), self.last.get("data_s")
        return waited / seconds if seconds and waited is not None else None


class LiveRun:
    """What a run directory says so far; ``refresh`` reads what was added. It does not grow with the run.

    Args:
        path: the directory, of a run that goes on or has ended.

    Attributes:
        record: the newest round, as in ``history.jsonl``; empty before the first.
        validation: the newest scores on the validation split.
        workers: by id.
        ensemble, effective: accuracy (or loss) and effective members of the newest validated rounds.
        samples: the newest lines of ``resources.jsonl``.
        nodes: the newest line of ``nodes.jsonl`` of each other machine.
        events: the newest lines of ``events.jsonl``.
        counts: events by kind.
        phases: seconds by phase, over all rounds.

    Raises:
        RunError: the directory holds no run.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        check_run(self.path)
        self._history = Tail(self.path / "history.jsonl")
        self._events = Tail(self.path / "events.jsonl")
        self._resources = Tail(self.path / "resources.jsonl")
        self._nodes = Tail(self.path / "nodes.jsonl")
        self.samples: deque[Json] = deque(maxlen=KEPT_SAMPLES)
        self.nodes: dict[str, Json] = {}
        self.events: deque[Json] = deque(maxlen=KEPT_EVENTS)
        self.counts: Counter[str] = Counter()
        self.metrics: Json | None = None
        self._forget_rounds()
        self.refresh()

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.path.resolve().name

    @property
    def num_rounds(self) -> int | None:
        """Rounds of the whole run, as far as its progress says."""
        progress = self.record.get("progress")
        return round(self.record["round"] / progress) if progress else None

    @property
    def broken_lines(self) -> int:
        """Lines that could not be read."""
        return sum(tail.broken for tail in (self._history, self._events, self._resources, self._nodes))

    def status(self, now: float | None = None) -> str:
        """``finished``, ``running``, ``waiting`` (for the first round), or for how long nothing was written.

        Args:
            now: Unix time; left out, the time it is.
        """
        if self.metrics is not None:
            return "finished"
        quiet = (time.time() if now is None else now) - self._newest_change()
        if quiet > QUIET_S:
            return f"silent for {quiet / 60:.0f} min" if quiet >= 120 else f"silent for {quiet:.0f} s"
        return "running" if self.record else "waiting for the first round"

    def refresh(self) -> bool:
        """Read what was added; whether that was anything."""
        anew, rounds = self._history.read()
        if anew and self.record:
            self._forget_rounds()
        for record in rounds:
            self._add_round(record)
        fresh, events = self._events.read()
        if fresh:
            self.events.clear()
            self.counts.clear()
        self.events.extend(events)
        self.counts.update(str(event.get("kind")) for event in events)
        fresh, samples = self._resources.read()
        if fresh:
            self.samples.clear()
        self.samples.extend(samples)
        _, seen = self._nodes.read()
        self.nodes.update({str(sample.get("node")): sample for sample in seen})
        ended = self._read_metrics()
        return bool(rounds or events or samples or seen or ended)

    def series(self, name: str) -> list[float | None]:
        """One figure of the newest samples, oldest first."""
        return [sample.get(name) for sample in self.samples]

    def to_dict(self) -> dict[str, Any]:
        """The state in plain JSON types."""
        return {
            "run": str(self.path),
            "status": self.status(),
            "round": self.record.get("round", 0),
            "rounds": self.num_rounds,
            "epoch": self.record.get("epoch"),
            "groups": len(self.record.get("groups", ())),
            "validation": self.validation or None,
            "workers": [dict(view.last) for _, view in sorted(self.workers.items())],
            "sent_bytes": self.sent_bytes,
            "dense_bytes": self.dense_bytes,
            "phases": dict(self.phases),
            "events": dict(self.counts),
            "sample": dict(self.samples[-1]) if self.samples else None,
            "nodes": {node: dict(sample) for node, sample in sorted(self.nodes.items())},
            "broken_lines": self.broken_lines,
        }

    def _forget_rounds(self) -> None:
        self.record: Json = {}
        self.validation: Json = {}
        self.workers: dict[int, WorkerView] = {}
        self.ensemble: deque[float | None] = deque(maxlen=KEPT_ROUNDS)
        self.effective: deque[float | None] = deque(maxlen=KEPT_ROUNDS)
        self.phases: Counter[str] = Counter()
        self.sent_bytes = self.dense_bytes = 0

    def _add_round(self, record: Json) -> None:
        self.record = record
        self.sent_bytes += record.get("sent_bytes") or 0
        self.dense_bytes += record.get("dense_bytes") or 0
        for phase, seconds in (record.get("phases") or {}).items():
            self.phases[phase] += seconds
        for row in record.get("workers") or ():
            view = self.workers.setdefault(row["worker"], WorkerView(row["worker"]))
            view.last = row
            view.losses.append(row.get("loss"))
            view.seconds.append(row.get("seconds"))
            view.rejected += row.get("status") == "rejected"
            view.failed += row.get("status") == "failed"
        validation = record.get("validation")
        if validation:
            self.validation = validation
            accuracy = validation.get("accuracy")
            self.ensemble.append(validation.get("loss") if accuracy is None else accuracy)
            self.effective.append(validation.get("effective_members"))

    def _read_metrics(self) -> bool:
        path = self.path / "metrics.json"
        if self.metrics is not None or not path.exists():
            return False
        try:
            self.metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return True

    def _newest_change(self) -> float:
        files = ("history.jsonl", "events.jsonl", "resources.jsonl", "config.toml")
        found = [self.path / name for name in files]
        return max((path.stat().st_mtime for path in found if path.exists()), default=0.0)
