"""``hqde doctor``: a healthy machine, and machines with something wrong."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch

from hqde.cli import examination, self_test
from hqde.cli.examination import examine_machine, find_data_sets

GIB = 2**30


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(self_test, "EACH_S", 0.0)


def findings():
    return {finding.what: finding for finding in examine_machine()}


def test_it_trains_packs_and_aggregates_with_figures(hqde):
    done = hqde("doctor", "--format", "json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    found = {finding["what"]: finding for finding in said["findings"]}
    assert "worker-samples/s" in found["self-test training"]["found"]
    assert "pyarrow" in found["extra data"]["found"]
    assert {"Python", "PyTorch", "threads", "CUDA devices", "memory", "disk", "Ray", "data sets"} <= set(
        found
    )
    assert said["speeds"]["training"]["worker_samples_per_s"] > 0
    assert said["speeds"]["packing"]["float32_mb_per_s"] > 0
    assert said["speeds"]["aggregation"]["float32_mb_per_s"] > 0
    assert said["problems"] == sum(finding["level"] == "problem" for finding in said["findings"])


def test_text_ends_with_what_to_do(hqde, monkeypatch):
    monkeypatch.setattr(examination, "usable_cores", lambda: 0)
    done = hqde("doctor")
    assert done.code == 0
    assert "3 of 3 self-tests passed" in done.out
    assert "threads: more threads than cores" in done.out.splitlines()[-1] or "problem(s)" in done.out


def test_a_self_test_that_fails_is_exit_code_1(hqde, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(self_test, "make_rule", broken)
    done = hqde("doctor", "--format", "json")
    assert done.code == 1
    said = json.loads(done.out)
    [failed] = [finding for finding in said["findings"] if finding["level"] == "problem"]
    assert failed["what"] == "self-test aggregation"
    assert "RuntimeError: no kernel image" in failed["cure"]


@pytest.mark.parametrize(
    ("what", "change", "words"),
    [
        (
            "memory",
            ("psutil.virtual_memory", lambda: SimpleNamespace(available=GIB // 2, total=8 * GIB)),
            "close",
        ),
        ("container", ("container_memory", lambda: (GIB, GIB // 2)), "raise its limit"),
        ("disk", ("shutil.disk_usage", lambda _: SimpleNamespace(total=9 * GIB, free=1)), "may not fit"),
        (
            "shared memory",
            ("shutil.disk_usage", lambda _: SimpleNamespace(total=2**26, free=1)),
            "--shm-size",
        ),
        ("working directory", ("os.access", lambda *_: False), "--out"),
        (
            "CUDA devices",
            ("GpuProbe", lambda: SimpleNamespace(read=lambda: (1,), close=lambda: None)),
            "with CUDA",
        ),
        ("Ray", ("version", lambda name: "2.40.1"), "before 2.52"),
    ],
)
def test_each_problem_has_its_cure(monkeypatch, what, change, words):
    if what == "CUDA devices" and torch.cuda.device_count():
        pytest.skip("PyTorch sees this machine's GPU")
    modules = {"psutil": psutil, "shutil": shutil, "os": os}
    module, _, name = change[0].rpartition(".")
    monkeypatch.setattr(modules.get(module, examination), name, change[1])
    found = findings()[what]
    assert found.level == "problem"
    assert words in found.cure


def test_what_is_missing_is_a_note_and_no_problem(monkeypatch):
    def nothing(name):
        raise examination.PackageNotFoundError(name)

    monkeypatch.setattr(examination, "version", nothing)
    found = findings()
    assert (found["extra top"].level, found["Ray"].level) == ("note", "ok")
    assert "hqde[top]" in found["extra top"].cure
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")
    assert findings()["Ray"].level == "problem"


def test_data_sets_in_the_folder_and_below_it(tmp_path):
    for name in (
        "fashion/train-images-idx3-ubyte.gz",
        "a/cifar/data_batch_1",
        "b.csv",
        ".hidden/c.csv",
        "x/y/z/d.npz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "run").mkdir()
    for name in ("config.toml", "history.jsonl", "predictions.csv"):
        (tmp_path / "run" / name).write_text("")
    assert find_data_sets(tmp_path) == ["b.csv", "fashion-mnist:fashion", "cifar10:a/cifar"]
