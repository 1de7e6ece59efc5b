"""``hqde plan``, and ``hqde train --backend auto``."""

from __future__ import annotations

import json
import tomllib

import pytest


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def test_plan_names_the_quickest_and_remembers(hqde, table):
    done = hqde("plan", "--data", table, "--workers", 2, "--epochs", 1, "--format", "json")
    assert done.code == 0
    plan = json.loads(done.out)
    assert plan["predicted_s"] == min(c["predicted_s"] for c in plan["candidates"] if c["predicted_s"])
    assert plan["settings"]["run.backend"] == "local"
    assert {c["candidate"]["precision"] for c in plan["candidates"]} == {"fp32", "bf16-mixed"}
    again = hqde("plan", "--data", table, "--workers", 2, "--epochs", 1)
    assert "quickest: --set run.backend=local" in again.out
    assert "tried" not in again.err
    fresh = hqde("plan", "--data", table, "--workers", 2, "--epochs", 1, "--fresh", "--no-bf16")
    assert "tried local" in fresh.err
    assert "bf16" not in fresh.out


def test_auto_trains_the_planned_way_and_tells_both_times(hqde, table, tmp_path):
    done = hqde("train", "--data", table, "--workers", 2, "--epochs", 2, "--backend", "auto", "--out", "run")
    assert done.code == 0
    assert "planned: local" in done.err
    assert "planned " in done.out
    assert " s, took " in done.out
    run = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["run"]
    assert run["backend"] == "local"
    assert run["lanes"] >= 1
    assert run["threads"] >= 1
    resumed = hqde("train", "--resume", "--out", "run", "--backend", "auto")
    assert resumed.code == 0, resumed.err


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
