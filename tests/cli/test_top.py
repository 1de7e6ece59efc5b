"""``hqde top`` on a run that is over and on one that grows, through textual's pilot."""

from __future__ import annotations

import asyncio
import json
import os
import time

import pytest

from hqde.cli.sparkline import sparkline
from hqde.cli.top_view import COLUMNS, resource_lines, sorted_workers
from hqde.reporting.live import LiveRun, Tail

textual = pytest.importorskip("textual")


def record(index, *, workers=4, groups=2, rounds=10, losses=None):
    each = workers // groups
    rows = [
        {"worker": w, "group": w // each, "loss": (losses or {}).get(w, 1.0 / (index + w)),
         "accuracy": 0.5 + 0.01 * w, "lr": 0.001, "samples": 100, "seconds": 1.0 + w, "data_s": 0.25,
         "encode_s": 0.01, "cpu_s": 0.9, "status": "admitted", "reason": "", "reliability": None}
        for w in range(workers)
    ]  # fmt: skip
    return {
        "round": index, "epoch": index, "progress": index / rounds, "scope": "none", "wall_s": 2.0,
        "groups": [list(range(g * each, (g + 1) * each)) for g in range(groups)],
        "phases": {"train": 1.5, "evaluate": 0.5}, "workers": rows, "sent_bytes": 1_000_000,
        "dense_bytes": 4_000_000,
        "validation": {
            "loss": 0.4, "accuracy": 0.8 + 0.01 * index, "rmse": None, "disagreement": 0.05,
            "effective_members": 1.25,
            "members": [{"member": m, "nll": 0.5, "accuracy": 0.75} for m in range(groups)],
        },
    }  # fmt: skip


def sample(second):
    return {"timestamp": second, "cpu_percent": 50.0 + second, "memory_percent": 25.0,
            "process_rss_bytes": 5e8,
            "disk_write_bytes_per_s": 1e6, "gpu_utilization": None}  # fmt: skip


def append(path, *records, tail=""):
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in records) + tail)


@pytest.fixture
def run_dir(tmp_path):
    """A run of three rounds of ten."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    append(run / "history.jsonl", *(record(i) for i in (1, 2, 3)))
    append(run / "resources.jsonl", *(sample(s) for s in range(5)))
    event = {
        "time": "2026-01-02T03:04:05.678+00:00",
        "round": 2,
        "kind": "rejected",
        "worker": 1,
        "reason": "not finite",
    }
    append(run / "events.jsonl", event)
    return run


def text_of(app, widget):
    return str(app.query_one(f"#{widget}").render())


def drive(run_dir, script):
    """Run an app on a directory and let ``script(app, pilot)`` use it."""
    from hqde.cli.top_screen import TopApp

    async def run():
        app = TopApp(LiveRun(run_dir), interval_s=0.05)
        async with app.run_test(size=(160, 50)) as pilot:
            await pilot.pause()
            await script(app, pilot)

    asyncio.run(run())


def test_a_recorded_run_is_shown(run_dir):
    async def look(app, pilot):
        head = text_of(app, "headline")
        assert "round 3/10" in head
        assert "4 workers in 2 groups" in head
        assert app.table.row_count == 4
        assert len(app.table.columns) == len(COLUMNS)
        assert "83.00" in text_of(app, "ensemble")
        assert "effective" in text_of(app, "ensemble")
        assert "member 1" in text_of(app, "ensemble")
        assert "1 rejected" in text_of(app, "ensemble")
        assert "3 MB" in text_of(app, "ensemble")
        machine = text_of(app, "resources")
        assert "CPU" in machine
        assert "▅" in machine
        assert "GPU" not in machine
        assert "03:04:05 round 2: rejected: worker 1: not finite" in text_of(app, "events")

    drive(run_dir, look)


def test_keys_sort_reverse_follow_and_leave(run_dir):
    def order(app):
        return [int(key.value) for key in app.table.rows]

    async def press(app, pilot):
        assert order(app) == [0, 1, 2, 3]
        await pilot.press("s", "s")  # by loss, which is smallest for the last worker
        assert order(app) == [3, 2, 1, 0]
        await pilot.press("r")
        assert order(app) == [0, 1, 2, 3]
        await pilot.press("down", "down", "f")
        await pilot.pause()
        assert app.followed == 2
        assert app.query_one("#follow").display
        assert "worker 2 of group 1" in text_of(app, "follow")
        await pilot.press("r")  # the cursor stays on its worker
        assert app.worker_under_cursor() == 2
        await pilot.press("escape")
        assert not app.query_one("#follow").display
        await pilot.press("p")
        assert "paused" in text_of(app, "headline")
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running

    drive(run_dir, press)


def test_a_run_that_grows_is_followed(run_dir):
    async def watch(app, pilot):
        append(run_dir / "history.jsonl", record(4), tail='{"round": 5, "epo')
        append(
            run_dir / "events.jsonl",
            {"time": "", "round": 4, "kind": "alert", "worker": None, "reason": "disk: full"},
        )
        await until(pilot, lambda: "round 4/10" in text_of(app, "headline"))
        assert "alert: disk: full" in text_of(app, "events")
        append(
            run_dir / "history.jsonl",
            tail='ch": 5' + json.dumps(record(5))[len('{"round": 5, "epoch": 5') :] + "\n",
        )
        await until(pilot, lambda: "round 5/10" in text_of(app, "headline"))
        (run_dir / "metrics.json").write_text("{}")
        await until(pilot, lambda: "finished" in text_of(app, "headline"))

    drive(run_dir, watch)


async def until(pilot, condition, limit_s=10.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        await pilot.pause(0.02)


def test_a_run_without_a_round_waits_for_it(tmp_path):
    (tmp_path / "config.toml").write_text("")

    async def watch(app, pilot):
        assert "waiting for the first round" in text_of(app, "headline")
        assert "no samples" in text_of(app, "resources")
        append(tmp_path / "history.jsonl", record(1))
        await until(pilot, lambda: app.table.row_count == 4)

    drive(tmp_path, watch)


def test_a_tail_takes_whole_lines_only_and_counts_broken_ones(tmp_path):
    path = tmp_path / "lines.jsonl"
    tail = Tail(path)
    assert tail.read() == (False, [])
    append(path, {"a": 1}, tail='{"a": 2')
    assert tail.read() == (True, [{"a": 1}])
    assert tail.read() == (False, [])
    append(path, tail='}\nnot json\n[1]\n{"a": 3}\n')
    assert tail.read() == (False, [{"a": 2}, {"a": 3}])
    assert tail.broken == 2


def test_a_history_that_was_cut_by_a_resume_is_read_anew(run_dir):
    run = LiveRun(run_dir)
    assert run.record["round"] == 3
    draft = run_dir / "draft"
    append(draft, record(1))
    os.replace(draft, run_dir / "history.jsonl")
    assert run.refresh()
    assert run.record["round"] == 1
    assert run.sent_bytes == 1_000_000
    assert len(run.workers[0].losses) == 1


def test_workers_without_a_figure_come_last_in_either_order(run_dir):
    append(run_dir / "history.jsonl", record(4, losses={1: None}))
    run = LiveRun(run_dir)
    loss = next(i for i, (name, _, _) in enumerate(COLUMNS) if name == "loss")
    run.workers[1].last = run.workers[1].last | {"loss": None}
    for reverse in (False, True):
        assert sorted_workers(run, loss, reverse=reverse)[-1].worker == 1


def test_the_other_machines_of_a_cluster_have_a_line_each(hqde, run_dir):
    append(run_dir / "nodes.jsonl", {"node": "b", "cpu_percent": 5.0, "memory_percent": None})
    append(run_dir / "nodes.jsonl", {"node": "b", "cpu_percent": 40.0, "memory_percent": None})
    append(run_dir / "nodes.jsonl", *({"node": f"m{i}", "memory_percent": 7.0} for i in range(9)))
    assert resource_lines(LiveRun(run_dir))[-9:] == [
        "b: CPU 40 %",
        *(f"m{i}: memory 7 %" for i in range(7)),
        "… and 2 more machines",
    ]
    assert json.loads(hqde("top", run_dir, "--format", "json").out)["nodes"]["b"]["cpu_percent"] == 40.0


def test_the_state_is_printed_for_scripts_and_pipes(hqde, run_dir):
    done = hqde("top", run_dir, "--format", "json")
    state = json.loads(done.out)
    assert (state["round"], state["rounds"], state["status"]) == (3, 10, "running")
    assert [worker["worker"] for worker in state["workers"]] == [0, 1, 2, 3]
    assert state["events"] == {"rejected": 1}
    done = hqde("top", run_dir, "--once")
    assert done.code == 0
    assert "round 3/10" in done.out
    assert "rejected: worker 1" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "there is no such directory"), (["."], "neither history.jsonl nor config.toml"),
     ([".", "--interval", "0"], "--interval must be above 0")],
)  # fmt: skip
def test_bad_usage(hqde, arguments, words):
    done = hqde("top", *arguments)
    assert done.code == 2
    assert words in done.err


def test_a_missing_extra_names_itself(hqde, run_dir, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "hqde.cli.top_screen", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    done = hqde("top", run_dir)
    assert done.code == 2
    assert "hqde[top]" in done.err


def test_sparklines_hold_their_scale():
    assert sparkline([0.0, 50.0, 100.0], low=0.0, high=100.0) == "▁▅█"
    assert sparkline([0.0, 0.0], low=0.0) == "▁▁"
    assert sparkline([None, 1.0, 2.0]) == " ▁█"
    assert len(sparkline(list(range(100)), width=10)) == 10


@pytest.mark.slow
def test_a_large_run_stays_responsive(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    append(run / "history.jsonl", *(record(i, workers=64, groups=8, rounds=1000) for i in range(1, 1001)))
    append(run / "resources.jsonl", *(sample(s) for s in range(5000)))
    began = time.process_time()
    LiveRun(run)
    assert time.process_time() - began < 5.0

    async def use(app, pilot):
        began = time.process_time()
        for _ in range(10):
            app.draw()
            await pilot.press("down")
        assert (time.process_time() - began) / 10 < 0.5

    drive(run, use)
