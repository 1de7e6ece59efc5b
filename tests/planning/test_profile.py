"""Profiles: parts add up, operations are those of the network, the summary says what the history holds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hqde.errors import RunError
from hqde.planning import describe_profile, profile_steps, run_seconds
from hqde.planning.profile import copy_bytes_per_s, gemm_flop_per_s
from hqde.testing import small_experiment


def test_parts_add_up_and_operations_are_those_of_the_network(tmp_path):
    experiment = small_experiment(num_workers=2)
    weights = experiment.initial_weights(0).vector.clone()
    found = profile_steps(experiment, threads=1, trace=tmp_path / "deep" / "trace.json")
    assert sum(found.parts_s.values()) == pytest.approx(found.seconds)
    assert all(seconds > 0 for seconds in found.parts_s.values())
    assert found.samples_per_s == found.samples / found.seconds
    # An MLP of 6-8-2: forward 2·(6·8 + 8·2), backward twice that but for the inputs' gradient.
    assert found.flop_per_sample == pytest.approx(2 * (48 + 16) + 2 * 48 + 2 * 2 * 16)
    names = {
        event.get("name")
        for event in json.loads((tmp_path / "deep" / "trace.json").read_text())["traceEvents"]
    }
    assert {"data", "forward", "backward", "optimizer", "aten::addmm"} <= names
    assert torch.equal(weights, experiment.initial_weights(0).vector)
    assert found.threads == 1


def test_the_device_is_measured():
    assert gemm_flop_per_s("fp32") > 1e8
    assert copy_bytes_per_s() > 1e8


def test_the_summary_adds_up_the_history(tmp_path):
    history = tmp_path / "history.jsonl"
    lines = [
        {
            "phases": {"train": 2.0, "aggregate": 0.1, "evaluate": 0.4},
            "workers": [{"seconds": 1.5}, {"seconds": 2.0}],
        },
        {
            "phases": {"train": 3.0, "aggregate": 0.2, "encode": 0.3},
            "workers": [{"seconds": 3.0}, {"seconds": 2.5}],
        },
    ]
    history.write_text("\n".join(map(json.dumps, lines)) + "\n")
    run = run_seconds(history)
    assert run == pytest.approx(
        {"train": 5.0, "aggregate": 0.3, "evaluate": 0.4, "encode": 0.3, "worked": 9.0}
    )
    steps = replace(profile_steps(small_experiment(), threads=1), samples=1000, seconds=1.0)
    text = describe_profile(steps, run, lanes=2, worker_samples_per_s=1500.0)
    assert "the run's rounds: 6.00 s" in text
    assert "(aggregate, encode, commit): 0.600 s" in text
    assert "idle: 1.000 s of 10.000 lane-seconds" in text
    assert "75.0% of 2 × one worker alone" in text


def test_a_run_without_rounds_is_refused(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        run_seconds(tmp_path / "none")
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(RunError, match="holds no round"):
        run_seconds(tmp_path / "history.jsonl")
