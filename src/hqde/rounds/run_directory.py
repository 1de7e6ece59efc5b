"""A run's directory: one writer for every file that a training leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hqde.checkpoints import CheckpointStore
from hqde.errors import RunError
from hqde.rounds.events import Event, RoundRecord
from hqde.topology import RoundPlan


class RunDirectory:
    """The files of one run; also a listener that appends rounds and events as they come.

    Layout: ``config.toml``, ``history.jsonl``, ``events.jsonl``, ``resources.jsonl``, ``metrics.json``,
    ``evaluation.json``, ``checkpoints/``, ``artefact/``, ``pool/`` (with snapshots), ``report.html``.

    Args:
        path: the directory; nothing is written before ``create``.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.history_file = self.path / "history.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.resources_file = self.path / "resources.jsonl"
        self.nodes_file = self.path / "nodes.jsonl"
        self.metrics_file = self.path / "metrics.json"
        self.evaluation_file = self.path / "evaluation.json"
        self.artefact = self.path / "artefact"
        self.pool = self.path / "pool"
        self.report_file = self.path / "report.html"
        self.store = CheckpointStore(self.path / "checkpoints")

    def refuse_if_taken(self) -> None:
        """Make sure that nothing would be overwritten.

        Raises:
            RunError: the path is a file, or a directory that is not empty.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose a directory for the run with --out")
        if self.path.is_dir() and any(self.path.iterdir()):
            held = "another run" if self.config_file.exists() else "other files"
            cure = ", or continue it with --resume" if self.config_file.exists() else ""
            raise RunError(f"{self.path} already holds {held}; choose an empty directory with --out{cure}")

    def require_run(self) -> None:
        """Make sure that a run was started here.

        Raises:
            RunError: there is none.
        """
        if not self.config_file.is_file():
            raise RunError(f"{self.path} holds no run (there is no config.toml in it)")

    def create(self, config_toml: str) -> None:
        """Make the directory and write its configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, config_toml)

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:  # noqa: ARG002
        """Forget history lines of rounds that will be run again: those after the last checkpoint."""
        if self.history_file.exists():
            kept = [
                line
                for line in self.history_file.read_text().splitlines()
                if _round_of(line) is not None and (_round_of(line) or 0) < first_round
            ]
            write_text(self.history_file, "".join(f"{line}\n" for line in kept))

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Steps are not kept."""

    def on_round(self, record: RoundRecord) -> None:
        """Append one line to the history."""
        _append(self.history_file, record.to_dict())

    def on_event(self, event: Event) -> None:
        """Append one line to the events."""
        _append(
            self.events_file,
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "round": event.round_index,
                "kind": event.kind,
                "worker": event.worker_id,
                "reason": event.reason,
            },
        )

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``, whole or not at all."""
        write_text(self.metrics_file, json.dumps(metrics, indent=2, allow_nan=False) + "\n")

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write ``evaluation.json``, whole or not at all."""
        write_text(self.evaluation_file, json.dumps(evaluation, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: readers see the old text or the new, never half of it."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def _round_of(line: str) -> int | None:
    """The round of a history line; ``None`` for one that a crash left half-written."""
    try:
        return int(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):
        return None
