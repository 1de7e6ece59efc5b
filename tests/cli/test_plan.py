"""``hqde plan``, and ``hqde train --backend auto``."""

from __future__ import annotations

import json
import tomllib

import pytest
import torch

from hqde.planning import Candidate
from hqde.planning import plan as planning
from hqde.training import stacking


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def test_plan_names_the_quickest_and_remembers(hqde, table):
    done = hqde("plan", "--data", table, "--workers", 2, "--epochs", 1, "--format", "json")
    assert done.code == 0
    plan = json.loads(done.out)
    assert plan["predicted_s"] == min(c["predicted_s"] for c in plan["candidates"] if c["predicted_s"])
    assert plan["settings"]["run.backend"] in ("local", "vectorised")  # whichever was quicker here
    assert {c["candidate"]["precision"] for c in plan["candidates"]} == {"fp32", "bf16-mixed"}
    again = hqde("plan", "--data", table, "--workers", 2, "--epochs", 1)
    assert f"quickest: --set run.backend={plan['settings']['run.backend']}" in again.out
    assert "tried" not in again.err
    fresh = hqde("plan", "--data", table, "--workers", 2, "--epochs", 1, "--fresh", "--no-bf16")
    assert "tried local" in fresh.err
    assert "bf16" not in fresh.out


def test_auto_trains_the_planned_way_and_tells_both_times(hqde, table, tmp_path):
    done = hqde("train", "--data", table, "--workers", 2, "--epochs", 2, "--backend", "auto", "--out", "run")
    assert done.code == 0
    assert "planned " in done.out
    assert " s, took " in done.out
    run = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["run"]
    assert run["backend"] in ("local", "vectorised")  # whichever was quicker here
    assert f"planned: {run['backend']}" in done.err
    assert run["lanes"] >= 1
    assert run["threads"] >= 1
    resumed = hqde("train", "--resume", "--out", "run", "--backend", "auto")
    assert resumed.code == 0, resumed.err


def only_so_many_at_a_time(monkeypatch, fits):
    def short(run, step, group, *rest):
        if len(group) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        update(run, step, group, *rest)

    update = stacking._Round._update
    monkeypatch.setattr(stacking._Round, "_update", short)


def test_plan_says_which_stack_there_was_memory_for_and_auto_takes_it(hqde, table, tmp_path, monkeypatch):
    only_so_many_at_a_time(monkeypatch, 2)
    stacked = Candidate("vectorised", 1, 1, "fp32")
    monkeypatch.setattr(planning, "candidates_for", lambda *_, **__: (stacked,))
    arguments = ("--data", table, "--workers", 4, "--epochs", 1)
    done = hqde("plan", *arguments)
    assert done.code == 0, done.err
    assert "tried vectorised, 1 lane of 1 thread, stacks of 2, fp32" in done.err
    assert f"{stacked.name} ran out of memory; vectorised, 1 lane of 1 thread, stacks of 2" in done.out
    assert "--set run.stacked=2" in done.out
    done = hqde("train", *arguments, "--backend", "auto", "--out", "run")
    assert done.code == 0, done.err
    assert "ran out of memory; vectorised" in done.err
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["run"]["stacked"] == 2
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_a_run_that_backs_off_says_so_once_and_one_that_cannot_ends_with_the_cure(
    hqde, table, tmp_path, monkeypatch
):
    arguments = ("train", "--data", table, "--workers", 4, "--epochs", 2, "--backend", "vectorised")
    with monkeypatch.context() as patch:
        only_so_many_at_a_time(patch, 1)
        done = hqde(*arguments, "--set", "run.lanes=1", "--out", "smaller")
    assert done.code == 0, done.err
    assert done.err.count("backed_off: a step of 4 worker(s)") == 1
    [line] = (tmp_path / "smaller" / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "backed_off"
    assert "backed off" in (tmp_path / "smaller" / "report.html").read_text()
    only_so_many_at_a_time(monkeypatch, 0)
    done = hqde(*arguments, "--out", "none")
    assert done.code == 2
    assert "lower training.batch_size" in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err


def test_auto_elsewhere_says_what_to_do(hqde, table):
    done = hqde("drill", "--data", table, "--workers", 8, "--set", "run.backend=auto")
    assert done.code == 2
    assert "hqde plan" in done.err


def test_a_profile_is_left_in_the_run(hqde, table, tmp_path):
    done = hqde("train", "--data", table, "--workers", 2, "--epochs", 1, "--profile", "--out", "run")
    assert done.code == 0, done.err
    summary = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert "steps of worker 0 alone" in summary
    assert summary.strip() in done.out
    assert json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())["traceEvents"]
