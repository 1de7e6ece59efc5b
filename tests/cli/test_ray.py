"""``--backend ray`` from the outside: same bits, one sentence for what cannot be, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.ray

SMALL = ("--workers", 2, "--groups", 1, "--set", "model.options.hidden=[8]", "--set", "run.threads=1")


@pytest.fixture(autouse=True)
def no_ray():
    """Each command finds no Ray, and leaves none."""
    ray = pytest.importorskip("ray")
    ray.shutdown()
    yield
    assert not ray.is_initialized()


def artefact(run):
    return {file.name: file.read_bytes() for file in sorted((run / "artefact").iterdir())}


@pytest.mark.long
def test_a_driver_killed_with_9_takes_all_along_and_resumes_to_the_bits_of_the_local_backend(
    hqde, table, tmp_path
):
    command = ["train", "--data", table, *SMALL, "--epochs", 25]
    process = subprocess.Popen(
        [sys.executable, "-m", "hqde", *map(str, command), "--backend", "ray", "--out", "killed"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    with process:
        history = tmp_path / "killed" / "history.jsonl"
        limit = time.monotonic() + 120
        while not (history.exists() and len(history.read_text().splitlines()) >= 3):
            assert process.poll() is None
            assert time.monotonic() < limit, "three rounds did not come in time"
            time.sleep(0.005)
        # Ray's two agents, which hold nothing, notice about a minute later.
        others = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if not child.name().endswith("Agent")
        ]
        process.send_signal(signal.SIGKILL)
    assert others
    _, alive = psutil.wait_procs(others, timeout=20)
    assert not alive
    assert not (tmp_path / "killed" / "artefact").exists(), "it was over before it was killed"
    assert hqde("train", "--resume", "--out", "killed").code == 0
    assert hqde(*command, "--out", "whole").code == 0
    assert artefact(tmp_path / "killed") == artefact(tmp_path / "whole")


def test_members_predict_on_ray_as_here(hqde, table, tmp_path):
    assert hqde("train", "--data", table, *SMALL, "--epochs", 2, "--out", "run").code == 0
    for backend in ("local", "ray"):
        done = hqde("predict", "run", "--data", table, "--out", f"{backend}.csv", "--backend", backend)
        assert done.code == 0, done.err
    here, there = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("local", "ray"))
    assert len(there) == 121
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--address", "127.0.0.1:1"], ["nothing answers at '127.0.0.1:1'", "ray start --head"]),
        (["--set", "ray.num_gpus=99"], ["2 workers of 99 GPUs each do not fit"]),
        (["--set", "ray.num_gpus=0.3"], ["must be 1/k", "0.25"]),
        pytest.param(
            ["--set", "ray.num_cpus=1000"],
            ["2 workers of 1000 CPUs each do not fit"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["--set", "ray.replication_factor=3"],
            ["replication_factor=3", "the cluster has 1"],
            marks=pytest.mark.long,
        ),
        (["--model", "only_here:Net"], ["worker 0 cannot be built", "only_here:Net"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    hqde, table, tmp_path, monkeypatch, arguments, words
):
    (tmp_path / "only_here.py").write_text(
        "import os\n\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self):\n"
        f"        assert os.getpid() == {os.getpid()}, 'no such file over there'\n"
        "        super().__init__(4, 3)\n"
    )
    monkeypatch.delitem(sys.modules, "only_here", raising=False)
    before = sorted(tmp_path.iterdir())
    workers = SMALL[:2] if "--model" in arguments else SMALL
    done = hqde("train", "--data", table, *workers, "--backend", "ray", "--out", "run", *arguments)
    assert done.code == 2, done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp8"], ["unknown precision 'fp8'"]),
        (["--precision", "int8"], ["int8 is for nn.Conv2d", "take 'bf16'"]),
        (["--backend", "rae"], ["unknown backend 'rae'", "did you mean 'ray'"]),
        (["--address", "auto"], ["--address and --num-gpus are for --backend ray"]),
        (["--backend", "ray", "--address", "127.0.0.1:1"], ["nothing answers at '127.0.0.1:1'"]),
        (["--backend", "ray", "--num-gpus", 99], ["no node has room for a task of 1 CPUs and 99 GPUs"]),
    ],
    ids=str,
)
def test_predicting_where_it_cannot_be_is_one_sentence(hqde, table, tmp_path, arguments, words):
    assert hqde("train", "--data", table, *SMALL, "--epochs", 1, "--out", "run").code == 0
    done = hqde("predict", "run", "--data", table, "--out", "p.csv", *arguments)
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err
    assert not (tmp_path / "p.csv").exists()
