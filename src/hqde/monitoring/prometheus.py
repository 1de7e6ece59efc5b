"""A run's figures at a port, for Prometheus (extra ``metrics``)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hqde.errors import ConfigError, MissingExtraError

Labels = tuple[str, ...]
Rows = Sequence[tuple[Labels, Any]]


class PrometheusExporter:
    """Serves ``/metrics`` while the run goes: rounds, workers, members, events and the machine.

    Names carry their unit (``_bytes``, ``_seconds``, ``_ratio``); labels are ``run``, ``worker``, ``group``,
    ``phase``, ``kind``, ``gpu`` and ``node``.

    Args:
        port: 0 takes any free one.
        host: the address to serve at.

    Attributes:
        port: the one that is served at.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        ConfigError: the port cannot be had.

    Example:
        >>> from urllib.request import urlopen
        >>> exporter = PrometheusExporter(0)
        >>> exporter.on_event({"kind": "rejected"})
        >>> text = urlopen(f"http://127.0.0.1:{exporter.port}/metrics").read().decode()
        >>> exporter.close()
        >>> 'hqde_events_total{kind="rejected",run=""} 1.0' in text
        True
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise MissingExtraError("--metrics-port", extra="metrics") from error
        self._run = ""
        self._lock = threading.Lock()
        self._info: dict[str, Any] = {}
        self._record: Mapping[str, Any] | None = None
        self._validation: Mapping[str, Any] | None = None
        self._sample: Mapping[str, Any] | None = None
        self._nodes: dict[str, Mapping[str, Any]] = {}
        self._sums: dict[tuple[str, Labels], float] = {}
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"metrics cannot be served at {host}:{port} ({error}); choose another --metrics-port"
            ) from error
        self.port: int = self._server.server_port

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Remember what the run is called."""
        with self._lock:
            self._run, self._info = run["name"], dict(run)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Take over a round's figures."""
        with self._lock:
            self._record = record
            self._validation = record["validation"] or self._validation
            for phase, seconds in record["phases"].items():
                self._add("phase", (phase,), seconds)
            for worker in record["workers"]:
                labels = (str(worker["worker"]), str(worker["group"]))
                self._add("samples", labels, worker["samples"])
                self._add("worker_seconds", labels, worker["seconds"] or 0.0)
            self._add("sent", (), record["sent_bytes"])
            self._add("dense", (), record["dense_bytes"])

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Count it."""
        with self._lock:
            self._add("events", (event["kind"],), 1)

    def on_sample(self, sample: Mapping[str, Any]) -> None:
        """Take over the machine's figures."""
        with self._lock:
            self._sample = sample

    def on_node_sample(self, sample: Mapping[str, Any]) -> None:
        """Take over another machine's figures."""
        with self._lock:
            self._nodes[sample["node"]] = sample

    def on_end(self, metrics: Mapping[str, Any] | None) -> None:  # noqa: ARG002 - the service ends with the run
        """Stop serving."""
        self.close()

    def close(self) -> None:
        """Stop serving and free the port; may be called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def describe(self) -> Iterable[Any]:
        """Nothing is known before the run."""
        return ()

    def collect(self) -> Iterator[Any]:
        """The figures as they stand, as Prometheus families."""
        with self._lock:
            found = [*self._totals(), *self._round(), *self._members(), *self._machine(), *self._others()]
        yield from found

    def _add(self, name: str, labels: Labels, amount: float) -> None:
        self._sums[name, labels] = self._sums.get((name, labels), 0.0) + amount

    def _totals(self) -> Iterator[Any]:
        for key, name, help_text, labels in (
            ("events", "hqde_events", "Events by kind.", ("kind",)),
            ("phase", "hqde_phase_seconds", "Time of the rounds by phase.", ("phase",)),
            ("samples", "hqde_worker_samples", "Examples trained on.", ("worker", "group")),
            ("worker_seconds", "hqde_worker_busy_seconds", "Time in rounds.", ("worker", "group")),
            ("sent", "hqde_sent_bytes", "Updates and weights as they travelled.", ()),
            ("dense", "hqde_dense_bytes", "The same without a codec.", ()),
        ):
            rows = [(at, value) for (kind, at), value in sorted(self._sums.items()) if kind == key]
            yield from self._family(name, help_text, labels, rows, counter=True)

    def _round(self) -> Iterator[Any]:
        record = self._record
        rounds = self._info.get("rounds")
        yield from self._gauge("hqde_rounds_planned", "Rounds of the whole run.", rounds)
        if record is None:
            return
        yield from self._gauge("hqde_round", "Newest finished round.", record["round"])
        yield from self._gauge("hqde_epoch", "Newest epoch.", record["epoch"])
        yield from self._gauge("hqde_progress_ratio", "Share of the run that is done.", record["progress"])
        yield from self._gauge("hqde_round_wall_seconds", "Wall time of the round.", record["wall_s"])
        yield from self._gauge("hqde_groups", "Groups of the round.", len(record["groups"]))
        for name, key, help_text in (
            ("hqde_worker_loss", "loss", "Training loss of the round."),
            ("hqde_worker_accuracy_ratio", "accuracy", "Training accuracy of the round."),
            ("hqde_worker_learning_rate", "lr", "Rate of the round's last step."),
            ("hqde_worker_round_seconds", "seconds", "Wall time of the round in the worker."),
            ("hqde_worker_reliability_ratio", "reliability", "What is remembered of the worker."),
            ("hqde_worker_peak_resident_memory_bytes", "peak_rss_bytes", "Of the worker's process."),
        ):
            rows = [((str(w["worker"]), str(w["group"])), w.get(key)) for w in record["workers"]]
            yield from self._family(name, help_text, ("worker", "group"), rows)

    def _members(self) -> Iterator[Any]:
        scores = self._validation
        if scores is None:
            return
        for name, key, help_text in (
            ("hqde_validation_loss", "loss", "Of the ensemble."),
            ("hqde_validation_accuracy_ratio", "accuracy", "Of the ensemble."),
            ("hqde_validation_rmse", "rmse", "Of the ensemble, in target units."),
            ("hqde_disagreement_ratio", "disagreement", "Rows on which two members disagree."),
            ("hqde_effective_members", "effective_members", "How many different members."),
        ):
            yield from self._gauge(name, help_text, scores.get(key))
        for name, key in (
            ("hqde_member_loss", "nll"),
            ("hqde_member_accuracy_ratio", "accuracy"),
            ("hqde_member_rmse", "rmse"),
        ):
            rows = [((str(score["member"]),), score.get(key)) for score in scores["members"]]
            yield from self._family(name, "Of a group's member on the validation split.", ("group",), rows)

    def _machine(self) -> Iterator[Any]:
        sample = self._sample
        if sample is None:
            return
        for name, key, unit, help_text in (
            ("hqde_cpu_ratio", "cpu_percent", 0.01, "Share of all cores that is busy."),
            ("hqde_memory_used_ratio", "memory_percent", 0.01, "Of the machine, or its container."),
            ("hqde_memory_used_bytes", "memory_used_gb", 2**30, "Of the machine."),
            ("hqde_run_cpu_cores", "process_cpu_percent", 0.01, "Cores that the run's processes keep busy."),
            ("hqde_run_resident_memory_bytes", "process_rss_bytes", 1, "Of the run's processes."),
            ("hqde_disk_free_bytes", "disk_free_bytes", 1, "Where the run is."),
            ("hqde_load1", "load_average", 1, "Load over the last minute."),
        ):
            value = sample.get(key)
            yield from self._gauge(name, help_text, None if value is None else value * unit)
        for name, key, help_text in (
            ("hqde_disk_read_bytes", "disk_io_read_mb", "All disks."),
            ("hqde_disk_written_bytes", "disk_io_write_mb", "All disks."),
            ("hqde_network_sent_bytes", "network_sent_mb", "All interfaces."),
            ("hqde_network_received_bytes", "network_recv_mb", "All interfaces."),
        ):
            value = sample.get(key)
            traffic: Rows = [((), None if value is None else value * 2**20)]
            yield from self._family(name, help_text + " Since monitoring began.", (), traffic, counter=True)
        gpus = sample.get("gpus") or ()
        for name, key, unit in (
            ("hqde_gpu_memory_used_bytes", "memory_used_bytes", 1),
            ("hqde_gpu_memory_bytes", "memory_total_bytes", 1),
            ("hqde_gpu_utilization_ratio", "utilization_percent", 0.01),
        ):
            rows = [((str(g["index"]),), None if g[key] is None else g[key] * unit) for g in gpus]
            yield from self._family(name, "Of a GPU.", ("gpu",), rows)

    def _others(self) -> Iterator[Any]:
        for name, key, unit, help_text in (
            ("hqde_node_cpu_ratio", "cpu_percent", 0.01, "Share of all cores that is busy."),
            ("hqde_node_memory_used_ratio", "memory_percent", 0.01, "Of the node, or its container."),
            ("hqde_node_run_cpu_cores", "process_cpu_percent", 0.01, "Cores that Ray's workers keep busy."),
            ("hqde_node_run_resident_memory_bytes", "process_rss_bytes", 1, "Of Ray's workers."),
            ("hqde_node_disk_free_bytes", "disk_free_bytes", 1, "Where Ray's workers are."),
            ("hqde_node_gpu_utilization_ratio", "gpu_utilization", 0.01, "Mean over the node's GPUs."),
            ("hqde_node_gpu_memory_used_bytes", "gpu_memory_used_gb", 2**30, "All GPUs of the node."),
        ):
            rows = [
                ((node,), None if sample.get(key) is None else sample[key] * unit)
                for node, sample in sorted(self._nodes.items())
            ]
            yield from self._family(name, help_text, ("node",), rows)

    def _gauge(self, name: str, help_text: str, value: float | None) -> Iterator[Any]:
        yield from self._family(name, help_text, (), [((), value)])

    def _family(
        self,
        name: str,
        help_text: str,
        labels: Labels,
        rows: Rows,
        *,
        counter: bool = False,
    ) -> Iterator[Any]:
        """A family with what is known; none where nothing is."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        known = [(at, float(value)) for at, value in rows if value is not None]
        if not known:
            return
        kind = CounterMetricFamily if counter else GaugeMetricFamily
        family = kind(name, help_text, labels=[*labels, "run"])
        for at, value in known:
            family.add_metric([*at, self._run], value)
        yield family
