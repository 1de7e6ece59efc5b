"""A watched run: what it leaves, that alerts get through, and that nothing in it stops the training."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import urlopen

import pytest

from hqde.config import build_config, build_experiment, dump_config, load_data, resolve
from hqde.errors import ConfigError
from hqde.monitoring import GpuMetrics, Monitoring, Probes, SystemMetrics
from hqde.rounds import RoundLog, RunDirectory, train_run

PHASES = ["checkpoint", "train", "aggregate", "encode", "commit", "evaluate"]


@pytest.fixture
def watched(tmp_path):
    """``watched(Monitoring(…))``: trains two workers on the digits; the run, its log and its figures."""

    def train(monitoring, name="run", **settings):
        tables = {"run": {"workers": 2, "epochs": 3}, "model": {"name": "mlp", "options": {"hidden": [8]}}}
        config = build_config(tables | settings)
        splits = load_data(config)
        config = resolve(config, splits)
        directory, log = RunDirectory(tmp_path / name), RoundLog()
        _, metrics = train_run(
            build_experiment(config, splits),
            directory,
            config_toml=dump_config(config),
            provenance={},
            listeners=(log,),
            monitoring=monitoring,
        )
        return directory, log, metrics

    return train


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("hqde")] == []


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_stand_in_the_run_with_round_and_phase(watched):
    directory, log, metrics = watched(Monitoring(interval_s=0.01))
    samples = lines(directory.resources_file)
    assert len(samples) == metrics["resources"]["samples"] >= 2
    assert samples[0]["phase"] == "start"
    assert samples[-1]["phase"] == "finish"
    assert [sample["round"] for sample in samples] == sorted(sample["round"] for sample in samples)
    assert {sample["phase"] for sample in samples} <= {"start", "finish", *PHASES}
    times = [sample["monotonic_s"] for sample in samples]
    assert times == sorted(times)
    figures = metrics["resources"]
    assert figures["peak_rss_bytes"] > 50e6
    assert figures["mean_process_cpu_percent"] > 0
    assert figures["disk_write_bytes"] >= 0
    assert metrics["alerts"] == {}
    assert log.events == []


def test_a_round_is_split_into_phases_and_a_workers_part_into_its_own(watched):
    _, log, _ = watched(Monitoring(), compression={"codec": "packed"}, topology={"groups": 1})
    for record in log.records:
        assert list(record.phases) == PHASES
        assert sum(record.phases.values()) == pytest.approx(record.wall_s, rel=0.2, abs=0.05)
        for worker in record.workers:
            assert 0 < worker.data_s < worker.seconds
            assert 0 < worker.encode_s < worker.seconds
            assert worker.cpu_s > 0
            assert worker.peak_rss_bytes is None  # it shares this process
    assert log.records[0].phases["encode"] > 0


def test_watching_changes_no_bit(watched):
    def hashes(directory):
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.artefact.iterdir()}

    one, _, _ = watched(Monitoring(interval_s=0.01), "watched")
    two, _, metrics = watched(None, "alone")
    assert hashes(one) == hashes(two)
    assert not two.resources_file.exists()
    assert "resources" not in metrics


def test_an_alert_reaches_events_listeners_webhook_and_command(watched, tmp_path):
    got = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    script = tmp_path / "told.py"
    script.write_text("import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())")
    try:
        directory, log, metrics = watched(
            Monitoring(
                rules={"memory": {"above": 0.0, "clear": 0.0, "for_s": 0.0}},
                webhook=f"http://127.0.0.1:{server.server_port}/",
                command=f"{sys.executable} {script} {tmp_path / 'told.json'}",
            )
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    [event] = [event for event in lines(directory.events_file) if event["kind"] == "alert"]
    assert event["reason"].startswith("memory: memory is ")
    assert [event.kind for event in log.events] == ["alert"]
    assert metrics["alerts"] == {"memory": 1}
    assert [alert["name"] for alert in got] == ["memory"]
    assert json.loads((tmp_path / "told.json").read_text())["change"] == "fired"


def test_a_webhook_and_a_command_that_do_not_work_are_logged(watched, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    _, _, metrics = watched(
        Monitoring(
            rules={"memory": {"above": 0.0, "clear": 0.0, "for_s": 0.0}},
            webhook=f"http://127.0.0.1:{port}/",
            command="no-such-command-here",
        )
    )
    assert metrics["accuracy"] > 0.3
    assert "the webhook" in caplog.text
    assert "'no-such-command-here' could not be run" in caplog.text


class Breaks:
    """A callback that fails in the method it is told to."""

    where = ""

    def on_start(self, run):
        assert self.where != "on_start"

    def on_round(self, record):
        assert self.where != "on_round"

    def on_sample(self, sample):
        assert self.where != "on_sample"

    def on_end(self, metrics):
        assert self.where != "on_end"


@pytest.mark.parametrize("where", ["on_start", "on_round", "on_sample", "on_end"])
def test_a_callback_that_raises_does_not_stop_the_training(watched, monkeypatch, caplog, where):
    monkeypatch.setattr(Breaks, "where", where)
    monkeypatch.setattr("hqde.rounds.observing.make_exporter", lambda name: Breaks())
    _, log, metrics = watched(Monitoring(exporters=["csv"]))
    assert len(log.records) == 3
    assert metrics["accuracy"] > 0.3
    assert f"Breaks failed in {where}" in caplog.text


@pytest.mark.parametrize(
    "broken",
    ["hqde.rounds.observing.Probes", "hqde.rounds.observing.Probes.sample", "hqde.rounds.observing._rounded",
     "hqde.rounds.observing.RoundSignals.read", "hqde.rounds.observing.Sampler.stop",
     "hqde.rounds.observing.sample_signals", "hqde.rounds.observing.Notifier.tell"],
)  # fmt: skip
def test_faults_in_monitoring_do_not_stop_the_training(watched, monkeypatch, caplog, broken):
    stops = []
    if broken.endswith("stop"):  # the thread must end all the same
        from hqde.monitoring import Sampler

        stops.append(Sampler.stop)

    def refuse(*_, **__):
        for stop in stops:
            stop(*_)
        raise MemoryError("as if")

    monkeypatch.setattr(broken, refuse)
    with caplog.at_level(logging.WARNING, "hqde"):
        rules = {"memory": {"above": 0.0, "clear": 0.0}}
        _, log, metrics = watched(Monitoring(interval_s=0.01, rules=rules))
    assert len(log.records) == 3
    assert metrics["accuracy"] > 0.3
    assert "as if" in caplog.text or broken.endswith("tell")
    assert sum("as if" in record.message for record in caplog.records) <= 2


def test_a_file_that_cannot_be_written_is_told_of_once(watched, monkeypatch, caplog):
    class Elsewhere(RunDirectory):
        def __init__(self, path):
            super().__init__(path)
            self.resources_file = self.path / "no" / "such" / "folder" / "resources.jsonl"

    monkeypatch.setattr(sys.modules[__name__], "RunDirectory", Elsewhere)
    _, _, metrics = watched(Monitoring(interval_s=0.01))
    assert sum("monitoring: _write failed" in record.message for record in caplog.records) == 1
    assert metrics["resources"]["samples"] >= 2


def test_metrics_are_served_while_the_run_goes_and_not_after(watched, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen = []

    def look(self, record):
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            seen.append(answer.read().decode())

    monkeypatch.setattr(RoundLog, "on_round", look)
    watched(Monitoring(metrics_port=port))
    assert 'hqde_validation_accuracy_ratio{run="run"}' in seen[-1]
    assert 'hqde_phase_seconds_total{phase="train",run="run"}' in seen[-1]
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/metrics")


def test_a_port_in_use_is_refused_before_anything_is_written(watched, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"{port} .*choose another --metrics-port"):
            watched(Monitoring(metrics_port=port))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_tells_its_exporters(watched, monkeypatch):
    ends = []

    class Ends:
        def on_end(self, metrics):
            ends.append(metrics)

    def interrupt(self, record):
        raise KeyboardInterrupt

    monkeypatch.setattr("hqde.rounds.observing.make_exporter", lambda name: Ends())
    monkeypatch.setattr(RoundLog, "on_round", interrupt)
    with pytest.raises(KeyboardInterrupt):
        watched(Monitoring(exporters=["csv"]))
    assert ends == [None]


def test_an_idle_gpu_counts_while_a_run_trains_on_it_alone(tmp_path):
    from hqde.rounds import RunObserver

    told = []
    directory = RunDirectory(tmp_path)
    rules = {"gpu_idle": {"for_s": 0.0}}
    idle = SystemMetrics(timestamp=0.0, gpus=(GpuMetrics(0, "x", 1, 2, 1.0),))
    with RunObserver(Monitoring(rules=rules), directory, on_gpu=True) as observer:
        observer.tell = told.append
        observer.on_phase(1, "evaluate")
        observer._on_sample(idle)
        assert told == []
        observer.on_phase(2, "train")
        observer._on_sample(idle)
    [event] = told
    assert (event.kind, event.round_index) == ("alert", 2)
    assert event.reason.startswith("gpu_idle: the GPU is busy 1 % of the time")


def test_other_machines_are_watched_beside_this_one(tmp_path):
    from hqde.monitoring import Callbacks
    from hqde.rounds import RunObserver

    seen = iter(
        [{}, {"far": SystemMetrics(1.0, cpu_percent=20.0)}, {"far": SystemMetrics(2.0, memory_percent=99.0)}]
    )
    told = []

    class Listens:
        def on_node_sample(self, sample):
            told.append(sample)

    directory = RunDirectory(tmp_path)
    rules = {"memory": {"above": 90.0, "clear": 80.0, "for_s": 0.0}}
    with RunObserver(Monitoring(rules=rules), directory, machines=lambda: next(seen)) as observer:
        observer._callbacks = Callbacks([Listens()])
        events = []
        observer.tell = events.append
        observer.on_phase(3, "train")
        for second in range(3):
            observer._on_sample(SystemMetrics(float(second), monotonic_s=float(second), memory_percent=10.0))
        figures = observer.figures()
    assert [line["node"] for line in told] == ["far", "far"]
    written = lines(directory.nodes_file)
    assert [(line["node"], line["round"], line["phase"]) for line in written] == [("far", 3, "train")] * 2
    assert [line["cpu_percent"] for line in written] == [20.0, None]
    assert len(lines(directory.resources_file)) == 3
    assert figures["nodes"]["far"]["mean_cpu_percent"] == 20.0
    assert figures["resources"]["peak_memory_percent"] == 10.0
    assert [event.reason.split(" ")[:2] for event in events] == [["memory:", "far:"]]


def test_settings_that_do_not_count_for_a_resume():
    from hqde.config import changed_settings

    assert changed_settings(build_config({}), build_config({"monitoring": {"interval_s": 0.5}})) == []


def test_probes_cost_little():
    """A hundred samples take no more than a second: one per second costs a percent at the very most."""
    import time

    probes = Probes()
    began = time.process_time()
    for _ in range(100):
        probes.sample()
    assert time.process_time() - began < 1.0
