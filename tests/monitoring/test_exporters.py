"""What leaves a run by another door: read back with the tools it is meant for."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from hqde.errors import ConfigError, MissingExtraError, RunError
from hqde.monitoring import Callbacks, PrometheusExporter, export_tables, make_exporter

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    "name": "run", "directory": "run", "config": {"run": {"seed": 0}}, "workers": 2, "groups": 2, "rounds": 4,
    "first_round": 1,
}  # fmt: skip


def record(index=1, *, loss=0.5):
    workers = [
        {"worker": w, "group": w, "loss": loss, "accuracy": 0.9, "lr": 0.1, "samples": 100, "seconds": 0.5,
         "status": "admitted", "reliability": None, "peak_rss_bytes": None}
        for w in range(2)
    ]  # fmt: skip
    validation = {
        "loss": 0.4, "accuracy": 0.95, "rmse": None, "disagreement": 0.05, "effective_members": 1.2,
        "members": [{"member": m, "nll": 0.5, "accuracy": 0.9} for m in range(2)],
    }  # fmt: skip
    return {
        "round": index, "epoch": index, "progress": index / 4, "groups": [[0], [1]],
        "scope": "none", "wall_s": 1.0, "phases": {"train": 0.75, "evaluate": 0.25}, "workers": workers,
        "validation": validation, "sent_bytes": 1000, "dense_bytes": 4000,
    }  # fmt: skip


def sample_line(sample, gpu):
    return sample(
        5.0, cpu_percent=50.0, memory_used_gb=2.0, memory_percent=25.0, disk_io_write_mb=3.0,
        gpus=(gpu(),), process_rss_bytes=2**30, disk_io_read_mb=1.0, network_sent_mb=1.0, network_recv_mb=1.0,
        disk_free_bytes=2**40,
    ).to_dict()  # fmt: skip


@pytest.fixture
def served():
    """An exporter at a free port."""
    exporter = PrometheusExporter(0)
    yield exporter
    exporter.close()
    exporter.close()


def fetch(port, accept="text/plain"):
    with urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def tell(exporter, sample, gpu):
    exporter.on_start(RUN)
    exporter.on_sample(sample_line(sample, gpu))
    exporter.on_node_sample({"node": "b", **sample_line(sample, gpu), "cpu_percent": 75.0})
    exporter.on_round(record(1))
    exporter.on_round(record(2, loss=None))
    exporter.on_event({"round": 2, "kind": "rejected", "worker": 1, "reason": "not finite"})


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_the_official_parsers_read_what_is_served(served, sample, gpu, accept):
    if "openmetrics" in accept:
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
    else:
        from prometheus_client.parser import text_string_to_metric_families as parse
    tell(served, sample, gpu)
    text, kind = fetch(served.port, accept)
    assert kind.startswith(accept.split(";")[0])
    found = {(s.name, *sorted(s.labels.items())): s.value for family in parse(text) for s in family.samples}

    def value(name, **labels):
        return found[(name, *sorted((labels | {"run": "run"}).items()))]

    assert value("hqde_round") == 2.0
    assert value("hqde_phase_seconds_total", phase="train") == 1.5
    assert value("hqde_worker_samples_total", worker="0", group="0") == 200.0
    assert value("hqde_sent_bytes_total") == 2000.0
    assert value("hqde_events_total", kind="rejected") == 1.0
    assert value("hqde_validation_accuracy_ratio") == 0.95
    assert value("hqde_member_accuracy_ratio", group="1") == 0.9
    assert value("hqde_cpu_ratio") == 0.5
    assert value("hqde_node_cpu_ratio", node="b") == 0.75
    assert value("hqde_node_run_resident_memory_bytes", node="b") == 2.0**30
    assert value("hqde_memory_used_bytes") == 2.0 * 2**30
    assert value("hqde_disk_written_bytes_total") == 3.0 * 2**20
    assert value("hqde_gpu_utilization_ratio", gpu="0") == 0.5
    assert not any(name.startswith("hqde_worker_loss") for name, *_ in found)  # None in the newest round


def test_every_name_in_the_dashboard_is_served(served, sample, gpu):
    tell(served, sample, gpu)
    served.on_round(record(3))
    text, _ = fetch(served.port)
    served_names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    panels = board["panels"]
    assert len(panels) >= 8
    asked = set()
    for panel in panels:
        for target in panel["targets"]:
            asked |= set(re.findall(r"hqde_\w+", target["expr"]))
    assert asked - served_names == set()
    assert len({tuple(sorted(panel["gridPos"].items())) for panel in panels}) == len(panels)


def test_a_port_in_use_is_refused(served):
    with pytest.raises(ConfigError, match="choose another --metrics-port"):
        PrometheusExporter(served.port)


@pytest.mark.slow
def test_a_real_prometheus_scrapes_it(served, sample, gpu, tmp_path):
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs a prometheus on the path (Debian package prometheus)")
    tell(served, sample, gpu)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs:\n  - job_name: hqde\n    scrape_interval: 1s\n    static_configs:\n"
        f"      - targets: ['127.0.0.1:{served.port}']\n"
    )
    process = subprocess.Popen(
        [program, "--config.file", tmp_path / "prometheus.yml", "--storage.tsdb.path", tmp_path / "data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        found = []
        while not found and time.monotonic() < end:
            time.sleep(0.5)
            try:
                with urlopen(f"http://127.0.0.1:{port}/api/v1/query?query=hqde_effective_members") as answer:
                    found = json.load(answer)["data"]["result"]
            except OSError:
                continue
        assert found[0]["metric"]["run"] == "run"
        assert float(found[0]["value"][1]) == 1.2
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.filterwarnings("ignore")  # tensorboard's own imports
def test_tensorboard_reads_its_files_back(sample, gpu, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exporter = make_exporter("tensorboard")
    exporter.on_start(RUN | {"directory": str(tmp_path)})
    exporter.on_sample(sample_line(sample, gpu))
    exporter.on_round(record(1))
    exporter.on_round(record(2, loss=0.25))
    exporter.on_event({"round": 2, "kind": "rejected", "worker": 1, "reason": "not finite"})
    exporter.on_end({"accuracy": 0.9, "train": {"rounds": 2}})
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    assert [e.value for e in read.Scalars("member/1/accuracy")] == [pytest.approx(0.9)] * 2
    assert [e.value for e in read.Scalars("resources/cpu_percent")] == [50.0]
    assert [e.value for e in read.Scalars("test/accuracy")] == [pytest.approx(0.9)]
    assert "events/text_summary" in read.Tags()["tensors"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_run(sample, gpu, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    exporter = make_exporter("mlflow")
    exporter.on_start(RUN)
    exporter.on_sample(sample_line(sample, gpu))
    exporter.on_round(record(1))
    exporter.on_round(record(2, loss=0.25))
    exporter.on_end({"accuracy": 0.9})
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("hqde").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"run.seed": "0"}
    assert run.data.metrics["train/loss"] == 0.25
    assert run.data.metrics["test/accuracy"] == 0.9


def write_lines(path, records, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in records) + tail)


@pytest.fixture
def run_dir(tmp_path, sample, gpu):
    """A run of two rounds whose last line is half written."""
    run = tmp_path / "run"
    run.mkdir()
    write_lines(run / "history.jsonl", [record(1), record(2, loss=None)], '{"round": 3, "epo')
    lines = [sample_line(sample, gpu) | {"round": 1, "phase": "train"}, sample(6.0).to_dict() | {"round": 2}]
    write_lines(run / "resources.jsonl", lines)
    write_lines(run / "events.jsonl", [{"round": 1, "kind": "alert", "worker": None, "reason": "x"}])
    return run


def test_tables_as_csv(run_dir):
    files = export_tables(run_dir, "csv")
    assert [file.name for file in files] == ["resources.csv", "history.csv", "workers.csv", "events.csv"]
    with (run_dir / "tables" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert rows[0]["phases.train"] == "0.75"
    assert rows[0]["validation.members.1.accuracy"] == "0.9"
    with (run_dir / "tables" / "workers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["worker"], row["loss"]) for row in rows] == [
        ("1", "0", "0.5"), ("1", "1", "0.5"), ("2", "0", ""), ("2", "1", ""),
    ]  # fmt: skip


def test_tables_as_parquet_keep_numbers_and_nulls(run_dir, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_tables(run_dir, "parquet", tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "resources.parquet").to_pydict()
    assert table["cpu_percent"] == [50.0, None]
    assert table["gpus.0.memory_used_bytes"] == [2**30, None]
    assert table["phase"] == ["train", None]
    workers = parquet.read_table(tmp_path / "out" / "workers.parquet").to_pydict()
    assert workers["loss"] == [0.5, 0.5, None, None]


def test_tables_as_json_lines_are_flat(run_dir):
    export_tables(run_dir, "jsonl", names=("history",))
    first = json.loads((run_dir / "tables" / "history.jsonl").read_text().splitlines()[0])
    assert first["phases.train"] == 0.75


def test_exports_that_cannot_be(run_dir, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        export_tables(run_dir, "parket")
    with pytest.raises(RunError, match="no such directory"):
        export_tables(tmp_path / "nowhere", "csv")
    with pytest.raises(RunError, match="cannot be written"):
        export_tables(run_dir, "csv", run_dir / "history.jsonl")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RunError, match="nothing to export yet"):
        export_tables(empty, "csv")
    (run_dir / "history.jsonl").write_text('{"round": 1\n{"round": 2}\n')
    with pytest.raises(RunError, match="line 1 is not valid JSON"):
        export_tables(run_dir, "csv")


def test_exporters_of_ones_own_are_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_exporter.py").write_text(
        "class Mine:\n    def on_round(self, record):\n        self.seen = record\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_exporter", raising=False)
    mine = make_exporter("my_exporter:Mine")
    Callbacks([mine]).on_round({"round": 1})
    assert mine.seen == {"round": 1}
    with pytest.raises(ConfigError, match="has no attribute 'Yours'"):
        make_exporter("my_exporter:Yours")
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        make_exporter("parqet")


def test_a_missing_extra_names_itself(monkeypatch):
    monkeypatch.setattr("hqde.monitoring.registry.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"hqde\[tracking\]"):
        make_exporter("tensorboard")


def test_a_callback_that_raises_is_left_out_and_the_others_go_on(caplog):
    class Bad:
        def on_round(self, record):
            raise KeyError("mine")

    class Good:
        seen = 0

        def on_round(self, record):
            self.seen += 1

    good = Good()
    callbacks = Callbacks([Bad(), good])
    with caplog.at_level(logging.WARNING, "hqde"):
        callbacks.on_round({})
        callbacks.on_round({})
    assert good.seen == 2
    assert len(caplog.records) == 1
