"""``PerformanceMonitor``: the machine, and whatever else is recorded, while something runs."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hqde.errors import ConfigError
from hqde.monitoring.alerts import Alert, AlertRule, Signal, Watch
from hqde.monitoring.probes import Probes
from hqde.monitoring.sampler import Sampler
from hqde.monitoring.signals import sample_signals
from hqde.monitoring.system_metrics import SystemMetrics
from hqde.monitoring.tables import FORMATS, flatten, write_table

# What a summary tells of, beside what was recorded.
SUMMARISED = (
    "cpu_percent", "memory_percent", "memory_used_gb", "process_cpu_percent", "process_rss_bytes",
    "gpu_memory_used_gb", "gpu_utilization", "load_average",
)  # fmt: skip


class PerformanceMonitor:
    """Samples the machine in the background and keeps what it is told, each in a ring of fixed size.

    ``hqde train`` watches its runs by itself; this is for scripts of your own.

    Args:
        interval_s: seconds between two samples.
        history_size: samples kept, and records of each kind.
        alerts: rules by name, over the signals of samples; see ``AlertRule``.
        probes: what is asked; left out, this machine.

    Example:
        >>> with PerformanceMonitor(interval_s=0.05) as monitor:
        ...     monitor.record_training_metrics(epoch=1, loss=0.5)
        ...     monitor.record_training_metrics(epoch=2, loss=0.25)
        ...     monitor.record_event("checkpoint", "after epoch 2")
        >>> monitor.get_metrics_summary()["training"]["loss"]["mean"]
        0.375
        >>> monitor.get_current_metrics().memory_used_gb > 0
        True
    """

    def __init__(
        self,
        interval_s: float = 1.0,
        *,
        history_size: int = 3600,
        alerts: Mapping[str, AlertRule] | None = None,
        probes: Probes | None = None,
    ) -> None:
        if interval_s <= 0 or history_size < 1:
            raise ConfigError(
                f"a monitor needs interval_s > 0 and history_size >= 1, got {interval_s:g} and {history_size}"
            )
        self._interval_s, self._history_size, self._given = interval_s, history_size, probes
        self._watch = Watch(alerts or {})
        self._alerts: deque[Alert] = deque(maxlen=history_size)
        self._sampler: Sampler | None = None
        self._records: dict[str, deque[dict[str, Any]]] = {}

    def __enter__(self) -> Self:
        self.start_monitoring()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_monitoring()

    @property
    def is_monitoring(self) -> bool:
        """Whether samples are being taken."""
        return self._sampler is not None and self._sampler.is_running

    def start_monitoring(self) -> None:
        """Begin; forgets the samples of an earlier time. A second call does nothing."""
        if self.is_monitoring:
            return
        self._sampler = Sampler(
            self._given or Probes(),
            interval_s=self._interval_s,
            capacity=self._history_size,
            on_sample=self._on_sample,
        )
        self._sampler.start()

    def stop_monitoring(self) -> None:
        """End; what was measured stays. May be called twice."""
        if self._sampler is not None:
            self._sampler.stop()

    def record_ensemble_metrics(self, **values: float | None) -> None:
        """Note figures of the ensemble, such as ``accuracy`` or ``effective_members``."""
        self._note("ensemble", values)

    def record_training_metrics(self, **values: float | None) -> None:
        """Note figures of a training, such as ``epoch``, ``loss``, ``learning_rate``."""
        self._note("training", values)

    def record_custom_metric(self, name: str, value: float | None) -> None:
        """Note one figure of any other kind."""
        self._note("custom", {name: value})

    def record_event(self, kind: str, description: str = "", **details: Any) -> None:
        """Note that something happened; ``details`` are plain JSON."""
        self._note("events", {"kind": kind, "description": description, **details})

    def get_current_metrics(self) -> SystemMetrics | None:
        """The newest sample; ``None`` before the first."""
        samples = self.samples()
        return samples[-1] if samples else None

    def samples(self, window_s: float | None = None) -> tuple[SystemMetrics, ...]:
        """What was sampled, oldest first; with a window only the newest so many seconds."""
        found = () if self._sampler is None else self._sampler.samples()
        if window_s is None or not found:
            return found
        return tuple(sample for sample in found if sample.monotonic_s >= found[-1].monotonic_s - window_s)

    def alerts(self) -> tuple[Alert, ...]:
        """What fired and what cleared, oldest first."""
        return tuple(self._alerts)

    def get_metrics_summary(self, window_s: float | None = None) -> dict[str, Any]:
        """Count, mean, lowest, highest and last of every figure.

        Args:
            window_s: only the newest so many seconds; left out, all that is kept.

        Returns:
            ``samples`` (a count), ``seconds``, ``system``, ``ensemble``, ``training`` and ``custom`` (figures
            by name), ``events`` (a count) and ``alerts`` (the rules that are beyond their threshold).
        """
        samples = self.samples(window_s)
        found: dict[str, Any] = {
            "samples": len(samples),
            "seconds": samples[-1].monotonic_s - samples[0].monotonic_s if samples else 0.0,
            "system": _summaries([sample.numbers() for sample in samples], SUMMARISED),
        }
        for kind in ("ensemble", "training", "custom"):
            records = self._recent(kind, window_s)
            names = dict.fromkeys(key for record in records for key in record if key != "timestamp")
            found[kind] = _summaries(records, tuple(names))
        return found | {"events": len(self._recent("events", window_s)), "alerts": list(self._watch.active)}

    def generate_report(self, window_s: float | None = None) -> str:
        """The summary as lines of text."""
        summary = self.get_metrics_summary(window_s)
        lines = [f"{summary['samples']} samples in {summary['seconds']:.1f} s, {summary['events']} events"]
        for kind in ("system", "ensemble", "training", "custom"):
            for name, figures in summary[kind].items():
                lines.append(
                    f"{kind} {name}: mean {figures['mean']:.4g}, {figures['min']:.4g} to "
                    f"{figures['max']:.4g}, last {figures['last']:.4g}"
                )
        lines += [f"alert {alert.name} {alert.change}: {alert.message}" for alert in self._alerts]
        return "\n".join(lines)

    def export_metrics(self, path: Path | str) -> Path:
        """Write everything to a file: ``.json`` holds all; ``.csv``, ``.parquet``, ``.jsonl`` the samples.

        Raises:
            ConfigError: another ending.
            MissingExtraError: parquet without pyarrow.
            RunError: the path cannot be written.
        """
        path = Path(path)
        samples = [sample.to_dict() for sample in self.samples()]
        if path.suffix.removeprefix(".") in FORMATS:
            write_table([flatten(sample) for sample in samples], path)
            return path
        if path.suffix != ".json":
            raise ConfigError(f"metrics go to .json, .csv, .parquet or .jsonl, not to '{path.name}'")
        records = {kind: list(kept) for kind, kept in self._records.items()}
        path.write_text(json.dumps({"system": samples, **records}, default=str) + "\n", encoding="utf-8")
        return path

    def _on_sample(self, sample: SystemMetrics) -> None:
        signals: Mapping[str, Signal] = sample_signals(sample, training_on_gpu=True)
        self._alerts.extend(self._watch.judge(signals, sample.monotonic_s))

    def _note(self, kind: str, values: Mapping[str, Any]) -> None:
        kept = self._records.setdefault(kind, deque(maxlen=self._history_size))
        kept.append({"timestamp": time.time(), **values})

    def _recent(self, kind: str, window_s: float | None) -> list[dict[str, Any]]:
        records = list(self._records.get(kind, ()))
        if window_s is None:
            return records
        since = time.time() - window_s
        return [record for record in records if record["timestamp"] >= since]


def _summaries(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {}
    for name in names:
        values = [v for record in records if isinstance(v := record.get(name), int | float)]
        if values:
            found[name] = {
                "count": len(values),
                "mean": sum(values) / len(values),
                "min": min(values),
                "max": max(values),
                "last": values[-1],
            }
    return found
