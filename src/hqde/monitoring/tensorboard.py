"""Rounds and samples as TensorBoard scalars (extra ``tracking``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hqde.errors import MissingExtraError
from hqde.monitoring.scalars import resource_scalars, round_scalars


class TensorBoardExporter:
    """Event files under ``tensorboard/`` in the run directory; steps are rounds, for resources seconds.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("exporter 'tensorboard'", extra="tracking") from error
        self._make = SummaryWriter
        self._writer: Any = None
        self._began: float | None = None

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Open the event file."""
        self._writer = self._make(str(Path(run["directory"]) / "tensorboard"))

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Losses, accuracies, diversity, bytes and phases of a round."""
        for name, value in round_scalars(record).items():
            self._writer.add_scalar(name, value, record["round"])

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Events as text."""
        who = "" if event["worker"] is None else f" worker {event['worker']}:"
        self._writer.add_text("events", f"{event['kind']}:{who} {event['reason']}", event["round"])

    def on_sample(self, sample: Mapping[str, Any]) -> None:
        """The machine's figures."""
        if self._writer is None:
            return
        began = self._began = sample["monotonic_s"] if self._began is None else self._began
        for name, value in resource_scalars(sample).items():
            self._writer.add_scalar(
                name, value, int(sample["monotonic_s"] - began), walltime=sample["timestamp"]
            )

    def on_node_sample(self, sample: Mapping[str, Any]) -> None:
        """Another machine's figures, over the same clock."""
        self.on_sample(sample)

    def on_end(self, metrics: Mapping[str, Any] | None) -> None:
        """Write the final figures and close."""
        for name in ("accuracy", "nll", "brier", "ece", "rmse", "crps"):
            if metrics is not None and isinstance(metrics.get(name), int | float):
                self._writer.add_scalar(f"test/{name}", metrics[name], metrics["train"]["rounds"])
        self._writer.close()
