"""``PerformanceMonitor`` by itself."""

from __future__ import annotations

import csv
import json

import pytest

from hqde import PerformanceMonitor, SystemMetrics
from hqde.errors import ConfigError, RunError
from hqde.monitoring import AlertRule


def test_the_public_names_are_those_of_the_seed():
    assert SystemMetrics.__module__ == "hqde.monitoring.system_metrics"
    assert PerformanceMonitor.__module__ == "hqde.monitoring.monitor"


def test_what_is_recorded_is_summarised_by_window(monkeypatch):
    clock = iter([100.0, 200.0, 300.0, 300.0, 300.0, 300.0, 300.0, 300.0])
    monitor = PerformanceMonitor()
    monkeypatch.setattr("hqde.monitoring.monitor.time.time", lambda: next(clock))
    for value in (1.0, 2.0, 3.0):
        monitor.record_custom_metric("depth", value)
    figures = monitor.get_metrics_summary(window_s=150.0)["custom"]["depth"]
    assert figures == {"count": 2, "mean": 2.5, "min": 2.0, "max": 3.0, "last": 3.0}


def test_samples_events_and_alerts(scripted, sample):
    source = scripted(*(sample(float(i), cpu_percent=50.0 + 20 * i) for i in range(4)))
    rules = {"busy": AlertRule("cpu_percent", above=80.0, message="busy: {value} %")}
    monitor = PerformanceMonitor(60.0, alerts=rules, probes=source)
    monitor.start_monitoring()
    monitor.start_monitoring()
    monitor.record_event("begun", "now", by="me")
    monitor.record_ensemble_metrics(accuracy=0.9, members=None)
    monitor._sampler.take()
    monitor.stop_monitoring()
    summary = monitor.get_metrics_summary()
    assert summary["samples"] == 3
    assert summary["system"]["cpu_percent"]["max"] == 90.0
    assert summary["ensemble"] == {"accuracy": {"count": 1, "mean": 0.9, "min": 0.9, "max": 0.9, "last": 0.9}}
    assert summary["events"] == 1
    assert summary["alerts"] == ["busy"]
    assert [alert.message for alert in monitor.alerts()] == ["busy: 90 %"]
    assert "busy: 90 %" in monitor.generate_report()
    assert monitor.samples(window_s=1.0) == monitor.samples()[-2:]


def test_export(scripted, sample, tmp_path):
    monitor = PerformanceMonitor(60.0, probes=scripted(sample(1.0, cpu_percent=5.0)))
    with monitor:
        monitor.record_training_metrics(epoch=1, loss=0.5)
    whole = json.loads(monitor.export_metrics(tmp_path / "all.json").read_text())
    assert whole["training"][0]["loss"] == 0.5
    with monitor.export_metrics(tmp_path / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cpu_percent"] for row in rows] == ["5.0", "5.0"]
    with pytest.raises(ConfigError, match=r"not to 'x.txt'"):
        monitor.export_metrics(tmp_path / "x.txt")
    with pytest.raises(RunError, match="cannot be written"):
        monitor.export_metrics(tmp_path / "all.json" / "x.csv")


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match="interval_s > 0"):
        PerformanceMonitor(0)
