"""A listener that watches the machine, raises alerts, and passes everything on to exporters."""

from __future__ import annotations

import json
import logging
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

from hqde.monitoring import (
    Alert,
    Callbacks,
    Monitoring,
    Notifier,
    Probes,
    PrometheusExporter,
    RoundSignals,
    Sampler,
    SystemMetrics,
    Watch,
    make_exporter,
    sample_signals,
)
from hqde.rounds.consumption import Consumption
from hqde.rounds.events import Event, RoundRecord
from hqde.rounds.run_directory import RunDirectory
from hqde.topology import RoundPlan

logger = logging.getLogger("hqde")
P = ParamSpec("P")


def _harmless(
    method: Callable[Concatenate[RunObserver, P], None],
) -> Callable[Concatenate[RunObserver, P], None]:
    """A method that logs what goes wrong in it, once for each method, and never raises."""

    @wraps(method)
    def guarded(self: RunObserver, *arguments: P.args, **keywords: P.kwargs) -> None:
        try:
            method(self, *arguments, **keywords)
        except Exception as error:  # noqa: BLE001 - whatever it is, training must not stop for it
            if method.__name__ not in self._broken:
                self._broken.add(method.__name__)
                logger.warning("monitoring: %s failed (%s: %s)", method.__name__, type(error).__name__, error)

    return guarded


class RunObserver:
    """Watches one run. A context manager: what it opens is closed at the end, however that comes.

    Once it is made nothing in it can stop the training: what fails is logged and left out.

    Args:
        settings: what to measure, and whom to tell.
        directory: of the run; samples go to its ``resources.jsonl``.
        config_toml: the run's settings.
        on_gpu: whether the run trains on GPUs.
        children: whether its workers are processes of their own.
        machines: the newest look at each other machine, by name; asked at every sample.

    Attributes:
        tell: gets the alerts, as events; from the sampler's thread too.

    Raises:
        ConfigError: an exporter cannot be made, or the port for metrics cannot be had.
        MissingExtraError: an exporter's package is not installed.
    """

    def __init__(
        self,
        settings: Monitoring,
        directory: RunDirectory,
        *,
        config_toml: str = "",
        on_gpu: bool = False,
        children: bool = False,
        machines: Callable[[], Mapping[str, SystemMetrics]] = dict,
    ) -> None:
        exporters = [make_exporter(name) for name in settings.exporters]
        self._metrics: PrometheusExporter | None = None
        if settings.metrics_port is not None:
            self._metrics = PrometheusExporter(settings.metrics_port, settings.metrics_host)
            exporters.append(self._metrics)
        self.tell: Callable[[Event], None] = self.on_event
        self._settings, self._directory, self._on_gpu = settings, directory, on_gpu
        self._config_toml, self._children = config_toml, children
        self._machines = machines
        self._callbacks = Callbacks(exporters)
        self._notifier = Notifier(webhook=settings.webhook, command=settings.command)
        self._watch, self._signals = Watch(settings.alert_rules()), RoundSignals()
        self._node_watches: dict[str, Watch] = {}
        self._lock = threading.RLock()
        self._broken: set[str] = set()
        self._sampler: Sampler | None = None
        self._place = (0, "start")
        self._consumed = Consumption()
        self._consumed_by: dict[str, Consumption] = {}
        self._fired: Counter[str] = Counter()
        self._is_over = False

    @property
    def metrics_port(self) -> int | None:
        """Where Prometheus metrics are served."""
        return None if self._metrics is None else self._metrics.port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(None)
        self._close()

    # -- what the engine tells -----------------------------------------------------------------------------

    @_harmless
    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:
        """Introduce the run to the exporters, and begin to sample."""
        groups = plans[-1].groups
        self._callbacks.on_start(
            {
                "name": self._directory.path.resolve().name,
                "directory": str(self._directory.path),
                "config": tomllib.loads(self._config_toml),
                "workers": sum(len(group) for group in groups),
                "groups": len(groups),
                "rounds": len(plans),
                "first_round": first_round,
            }
        )
        if self._settings.interval_s:
            probes = Probes(disk=self._directory.path, children=self._children)
            self._sampler = Sampler(
                probes,
                interval_s=self._settings.interval_s,
                capacity=self._settings.keep,
                on_sample=self._on_sample,
            )
            self._sampler.start()

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Steps are not watched."""

    def on_phase(self, round_index: int, phase: str) -> None:
        """Samples from here on belong to this phase of this round."""
        self._place = (round_index, phase)

    @_harmless
    def on_round(self, record: RoundRecord) -> None:
        """Judge the round, and pass it on."""
        line = record.to_dict()
        self._callbacks.on_round(line)
        with self._lock:
            alerts = self._watch.judge(self._signals.read(line), time.monotonic())
        self._raise(alerts)

    @_harmless
    def on_event(self, event: Event) -> None:
        """Pass it on."""
        self._callbacks.on_event(
            {
                "round": event.round_index,
                "kind": event.kind,
                "worker": event.worker_id,
                "reason": event.reason,
            }
        )

    # -- the end -------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Stop sampling; for ``metrics.json``: ``alerts``, and ``resources`` where they were watched."""
        self._stop_sampling()
        found: dict[str, Any] = {"alerts": dict(self._fired)}
        if self._consumed.num_samples:
            found["resources"] = self._consumed.to_dict(self._settings.interval_s)
        if self._consumed_by:
            each = sorted(self._consumed_by.items())
            found["nodes"] = {node: used.to_dict(self._settings.interval_s) for node, used in each}
        return found

    def on_end(self, metrics: dict[str, Any]) -> None:
        """The run came to its end."""
        self._end(metrics)

    @_harmless
    def _end(self, metrics: dict[str, Any] | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._stop_sampling()
            self._callbacks.on_end(metrics)

    @_harmless
    def _stop_sampling(self) -> None:
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()

    @_harmless
    def _close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        self._notifier.close()

    # -- samples and alerts --------------------------------------------------------------------------------

    @_harmless
    def _on_sample(self, sample: SystemMetrics) -> None:
        round_index, phase = self._place
        line = sample.to_dict() | {"round": round_index, "phase": phase}
        self._consumed.add(sample)
        self._write(self._directory.resources_file, line)
        self._callbacks.on_sample(line)
        self._judge(self._watch, sample)
        self._look_at_machines()

    @_harmless
    def _look_at_machines(self) -> None:
        round_index, phase = self._place
        for node, seen in self._machines().items():
            sample = replace(seen, monotonic_s=time.monotonic())  # every machine has such a clock of its own
            line = {"node": node, **sample.to_dict(), "round": round_index, "phase": phase}
            self._consumed_by.setdefault(node, Consumption()).add(sample)
            self._write(self._directory.nodes_file, line)
            self._callbacks.on_node_sample(line)
            if node not in self._node_watches:
                self._node_watches[node] = Watch(self._settings.alert_rules())
            self._judge(self._node_watches[node], sample, node)

    def _judge(self, watch: Watch, sample: SystemMetrics, node: str = "") -> None:
        signals = sample_signals(sample, training_on_gpu=self._on_gpu and self._place[1] == "train")
        with self._lock:
            alerts = watch.judge(signals, sample.monotonic_s)
        if node:
            alerts = [replace(alert, message=f"{node}: {alert.message}") for alert in alerts]
        self._raise(alerts)

    @_harmless
    def _write(self, path: Path, line: dict[str, Any]) -> None:
        if "_write" in self._broken:  # a full or read-only disk stays one
            return
        with path.open("a") as file:
            file.write(json.dumps(_rounded(line), separators=(",", ":")) + "\n")

    def _raise(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            kind = "alert" if alert.change == "fired" else "cleared"
            self._fired[alert.name] += alert.change == "fired"
            told = {"run": str(self._directory.path), "round": self._place[0], **asdict(alert)}
            self._notifier.tell(told)
            self.tell(Event(kind, self._place[0], alert.worker, f"{alert.name}: {alert.message}"))


def _rounded(value: Any) -> Any:
    """Numbers to three decimals: nobody reads more of a rate, and the file grows all the time."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
