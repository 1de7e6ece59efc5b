"""``hqde train`` from the outside: what it leaves, what it repeats, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager

import pytest
import torch

from hqde.ensemble import Ensemble

SMALL = ("--workers", 2, "--groups", 2, "--epochs", 2, "--set", "model.options.hidden=[8]")
RUN_FILES = {"artefact", "checkpoints", "config.toml", "evaluation.json", "history.jsonl", "metrics.json"}
RUN_FILES |= {"resources.jsonl"}


def tensor_hashes(artefact):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(artefact.iterdir())}


def test_a_run_leaves_what_the_design_names(hqde, table, tmp_path):
    done = hqde("train", "--data", table, *SMALL, "--out", "run")
    assert done.code == 0, done.err
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == RUN_FILES | {"report.html"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) >= {
        "accuracy", "nll", "brier", "ece", "mean_member_accuracy", "members", "diversity", "train",
        "communication", "faults", "backend", "workers", "groups", "seed", "calibrated", "temperature",
    }  # fmt: skip
    assert metrics["train"]["worker_samples"] > 0
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["round"] for line in history] == [1, 2]
    assert tomllib.loads((run / "config.toml").read_text())["model"]["name"] == "mlp"
    assert Ensemble.load(run / "artefact").schema.classes == ("ash", "birch", "cedar")
    assert "test accuracy" in done.out
    assert "report" in done.out


def test_each_synchronisation_is_announced_with_its_learning_rate(hqde, table):
    done = hqde("train", "--data", table, "--workers", 2, "--groups", 1, "--epochs", 2, "--out", "run")
    lines = [line for line in done.err.splitlines() if "Weights aggregated and synchronized" in line]
    assert len(lines) == 2
    assert "at epoch 1" in lines[0]
    assert all("LR" in line for line in lines)


def test_json_format_prints_one_document_and_no_progress(hqde, table):
    done = hqde("train", "--data", table, *SMALL, "--out", "run", "--format", "json")
    assert json.loads(done.out)["run"] == "run"
    assert done.err == ""


def test_the_same_command_twice_gives_the_same_artefact_and_another_seed_does_not(hqde, table, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        assert hqde("train", "--data", table, *SMALL, "--seed", seed, "--out", name).code == 0
    one, two, other = (tensor_hashes(tmp_path / name / "artefact") for name in ("one", "two", "other"))
    assert one == two
    assert all(one[name] != other[name] for name in one)


def test_the_written_config_repeats_the_run(hqde, table, tmp_path):
    assert hqde("train", "--data", table, *SMALL, "--out", "one").code == 0
    assert hqde("train", "--config", "one/config.toml", "--out", "two").code == 0
    assert tensor_hashes(tmp_path / "one" / "artefact") == tensor_hashes(tmp_path / "two" / "artefact")


def test_without_out_runs_are_numbered(hqde, table, tmp_path):
    for _ in range(2):
        assert hqde("train", "--data", table, *SMALL).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["trees-001", "trees-002"]


def test_regression_trains_evaluates_and_predicts(hqde, tmp_path):
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(150, 3, generator=draws)
    lines = ["u,v,w,price"]
    lines += [f"{a:.5f},{b:.5f},{c:.5f},{3 * a - b + 0.123:.5f}" for a, b, c in rows.tolist()]
    (tmp_path / "prices.csv").write_text("\n".join(lines) + "\n")
    options = ("--data", "prices.csv", "--set", "data.target=price", "--set", "training.loss=gaussian_nll")
    done = hqde("train", *options, "--workers", 2, "--epochs", 30, "--out", "run", "--format", "json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    assert metrics["accuracy"] is None
    assert metrics["rmse"] < 1.5
    assert metrics["crps"] > 0
    assert hqde("predict", "run", "--data", "prices.csv", "--out", "p.csv").code == 0
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == "predicted,std,aleatoric_std,epistemic_std"


def test_a_tables_target_is_remembered_from_training(hqde, tmp_path):
    draws = torch.Generator().manual_seed(0)
    lines = ["price,u,v"]
    lines += [f"{100 + a:.4f},{a:.4f},{b:.4f}" for a, b in torch.randn(150, 2, generator=draws).tolist()]
    (tmp_path / "first.csv").write_text("\n".join(lines) + "\n")
    options = ("--set", "data.target=price", "--workers", 2, "--epochs", 20, "--out", "run")
    assert hqde("train", "--data", "first.csv", *options).code == 0
    named = hqde("evaluate", "run", "--data", "first.csv", "--target", "price", "--format", "json")
    plain = hqde("evaluate", "run", "--data", "first.csv", "--format", "json")
    assert json.loads(plain.out) == json.loads(named.out)
    assert hqde("predict", "run", "--data", "first.csv", "--out", "p.csv").code == 0
    predicted = [float(row.partition(",")[0]) for row in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    assert 90 < sum(predicted) / len(predicted) < 110


def test_groups_of_different_architectures(hqde, table, tmp_path):
    (tmp_path / "mixed.toml").write_text(
        "[run]\nworkers = 2\nepochs = 1\n[topology]\ngroups = 2\n"
        "[model]\noptions = { hidden = [8] }\n[group.1]\nmodel = 'mlp'\noptions = { hidden = [16, 16] }\n"
        "[group.1.training]\nlearning_rate = 0.1\n"
    )
    done = hqde("train", "--config", "mixed.toml", "--data", table, "--out", "run")
    assert done.code == 0, done.err
    ensemble = Ensemble.load(tmp_path / "run" / "artefact")
    sizes = [sum(p.numel() for p in member.model.parameters()) for member in ensemble.members]
    assert sizes[0] < sizes[1]
    workers = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])["workers"]
    assert workers[1]["lr"] > 10 * workers[0]["lr"]


POISONED = """
import torch
from torch import nn

class Poisoned(nn.Module):
    # Goes NaN while training where the dropout rate is that of the last of four workers.

    def __init__(self, dropout_rate=0.1):
        super().__init__()
        self.dropout_rate, self.layer = dropout_rate, nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer(x)
        return x * torch.nan if self.training and self.dropout_rate > 0.14 else x
"""


def test_a_worker_whose_loss_is_nan_is_rejected_and_the_run_says_so(hqde, table, tmp_path, monkeypatch):
    (tmp_path / "poisoned.py").write_text(POISONED)
    monkeypatch.delitem(sys.modules, "poisoned", raising=False)
    options = ("--workers", 4, "--groups", 2, "--epochs", 3, "--model", "poisoned:Poisoned")
    faster = ("--set", "training.learning_rate=0.1", "--set", "training.batch_size=16")
    done = hqde("train", "--data", table, *options, *faster, "--out", "run")
    assert done.code == 0, done.err
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    alerts = [
        (e["round"], e["worker"], e["reason"].partition(":")[0]) for e in events if e["kind"] == "alert"
    ]
    assert alerts == [(1, 3, "loss"), (3, None, "rejections")]
    events = [event for event in events if event["kind"] != "alert"]
    assert {(e["kind"], e["worker"]) for e in events} == {("rejected", 3)}
    assert [e["round"] for e in events] == [1, 2, 3]
    assert all("not finite" in e["reason"] or "training loss is nan" in e["reason"] for e in events)
    assert "not everything went well: 3 rejected" in done.out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["faults"]["rejected"] == 3
    assert metrics["accuracy"] > 0.5


def refused(done, *words):
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "digitz"], ["unknown data set 'digitz'", "did you mean 'digits'"]),
        (["--data", "missing.csv"], ["missing.csv"]),
        (["--workers", 6, "--groups", 4], ["4 groups do not divide 6 workers"]),
        (["--workers", 5000], ["cannot feed 5000 workers"]),
        (["--epochs", 0], ["epochs must be at least 1, got 0"]),
        (["--epochs", -2], ["epochs must be at least 1, got -2"]),
        (["--model", "cnnn"], ["unknown model 'cnnn'", "did you mean 'cnn'"]),
        (["--backend", "locl"], ["unknown backend 'locl'", "did you mean 'local'"]),
        (["--metrics-port", 99999], ["monitoring.metrics_port", "65535", "99999"]),
        (
            ["--set", "monitoring.exporters=['tensorbord']"],
            ["unknown exporter", "did you mean 'tensorboard'"],
        ),
        (["--set", "monitoring.exporters=['nobody:Here']"], ["exporter 'nobody:Here'", "No module named"]),
        (
            ["--set", "monitoring.rules.memory.abov=3"],
            ["monitoring.rules.memory.abov", "did you mean 'above'"],
        ),
        (["--set", "monitoring.interval_s=-1"], ["monitoring.interval_s must be 0 (off) or at least 0.01"]),
        (["--set", "monitoring.webhook=example.org"], ["monitoring.webhook must start with http://"]),
        (["--set", "run.ep0chs=3"], ["unknown setting 'run.ep0chs'", "did you mean 'epochs'"]),
        (["--set", "runs.epochs=3"], ["unknown setting 'runs'", "did you mean 'run'"]),
        (["--set", "run.epochs"], ["'run.epochs' is not a setting"]),
        (["--set", "training.learning_rate=fast"], ["training.learning_rate", "number", "'fast'"]),
        (["--config", "missing.toml"], ["there is no config file missing.toml"]),
        (["--resume"], ["--resume needs --out"]),
        (["--resume", "--out", "nowhere"], ["nowhere holds no run"]),
        (["--set", "run.device=cuda:99"], ["cuda:99"]),
        (["--set", "data.partition=dirchlet"], ["dirchlet", "did you mean 'dirichlet'"]),
        (["--set", "server.optimizer=adam"], ["unknown server optimizer 'adam'"]),
        (["--set", "ensemble.combiner=medain"], ["medain", "did you mean 'median'"]),
        (
            ["--model", "torch.nn:Linear", "--set", "model.options={in_features=8, out_features=3}"],
            ["the model returns", "10 classes"],
        ),
        (["--set", "group.7.dropout_rate=0.2"], ["group 7", "0 to 3"]),
        (
            ["--model", "torch.nn:Linear", "--set", "model.options={in_features=3, out_features=10}"],
            ["model 'torch.nn:Linear' cannot take inputs of shape (4, 1, 8, 8)"],
        ),
    ],
    ids=str,
)
def test_bad_usage_is_one_sentence_and_writes_nothing(hqde, tmp_path, arguments, words):
    before = sorted(tmp_path.rglob("*"))
    given = [] if "--resume" in arguments else ["--out", "run"]
    refused(hqde("train", *given, *arguments), *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b,label\n1,2,0\n3,nan,1\n4,5,0\n", ["column 'b'", "NaN"]),
        ("a,b,label\n1,2,0\n3,4,0\n4,5,0\n", ["only one class"]),
        ("a,b,label\n", ["trees.csv"]),
        ("a,b,label\n1,2,0\n3,4\n", ["trees.csv"]),
        ("a,b,label\n1,x,0\n3,4,1\n", ["column 'b'"]),
    ],
)
def test_bad_tables_are_refused_and_nothing_is_written(hqde, tmp_path, content, words):
    path = tmp_path / "trees.csv"
    path.write_text(content)
    refused(hqde("train", "--data", path, "--out", "run"), *words)
    assert not (tmp_path / "run").exists()


def test_a_directory_with_another_run_is_left_alone(hqde, table, tmp_path):
    assert hqde("train", "--data", table, *SMALL, "--out", "run").code == 0
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    refused(hqde("train", "--data", table, *SMALL, "--out", "run"), "already holds another run", "--resume")
    refused(hqde("train", "--resume", "--out", "run", "--epochs", 5), "made with other settings (run.epochs)")
    after = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    assert before == after


@contextmanager
def train_process(table, run, *, epochs):
    """A training of its own, which Ctrl-C reaches even where these tests run in the background."""
    command = [sys.executable, "-m", "hqde", "train", "--data", table, "--out", run, "--epochs", epochs]
    command += ["--workers", 2, "--groups", 1, "--set", "model.options.hidden=[8]"]
    process = subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_rounds(process, run, count):
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        history = run / "history.jsonl"
        if history.exists() and len(history.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    raise AssertionError(f"{count} rounds did not come in time")


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(17, marks=pytest.mark.long)])
def test_kill_9_and_resume_gives_the_bits_of_an_uninterrupted_run(hqde, write_table, tmp_path, rounds):
    table = write_table(tmp_path / "trees.csv", rows=600)
    with train_process(table, tmp_path / "whole", epochs=40) as whole:
        assert whole.wait(120) == 0, whole.stderr.read()
    with train_process(table, tmp_path / "killed", epochs=40) as killed:
        wait_for_rounds(killed, tmp_path / "killed", rounds)
        killed.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "artefact").exists(), "it was over before it was killed"
    done = hqde("train", "--resume", "--out", tmp_path / "killed")
    assert done.code == 0, done.err
    assert tensor_hashes(tmp_path / "killed" / "artefact") == tensor_hashes(tmp_path / "whole" / "artefact")
    history = (tmp_path / "killed" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in history] == list(range(1, 41))


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(write_table, tmp_path):
    table = write_table(tmp_path / "trees.csv", rows=600)
    with train_process(table, tmp_path / "run", epochs=2000) as process:
        wait_for_rounds(process, tmp_path / "run", 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        said = process.stderr.read()
    assert "hqde train --resume --out" in said
    assert "Traceback" not in said
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "interrupted"
