"""What monitoring adds to the page: the machine over time, events, and what became of updates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hqde.reporting import build_report, read_run
from hqde.reporting.costs import cost_figures
from hqde.reporting.faults import fault_figures
from hqde.reporting.panel import Figure
from hqde.reporting.resources import resource_figures

WriteRun = Callable[..., Path]


def titles(figures: list[Figure]) -> list[str]:
    return [figure.title for figure in figures]


def event(second: int, kind: str, *, round_index: int = 3, worker: int | None = None) -> dict[str, Any]:
    time = f"2026-01-02T03:{4 + (5 + second) // 60:02d}:{(5 + second) % 60:02d}+00:00"
    return {"time": time, "round": round_index, "kind": kind, "worker": worker, "reason": "because"}


def test_the_machine_is_drawn_with_rounds_and_events(write_run: WriteRun) -> None:
    run = write_run(
        num_rounds=10, num_samples=100, events=[event(30, "alert"), event(30, "rejected", worker=2)]
    )
    busy, memory, traffic = resource_figures(read_run(run))
    assert busy.title.startswith("The machine's processors are busy 6")
    assert "1.5 cores" in busy.note
    assert [key.name for key in busy.legend] == ["all cores", "memory"]  # there is no GPU
    drawing = str(busy.chart)
    assert "round 2 begins" in drawing
    assert "round 10 begins" in drawing
    assert "alert, rejected: because; because" in drawing
    assert memory.title == "The run's processes take 599 MB of memory at most"
    assert traffic.title == "In 1 min 39 s the machine wrote 208 MB to disk and sent 0 B over the network"


def test_a_pause_before_a_resume_is_cut_out(write_run: WriteRun) -> None:
    run = write_run(num_samples=50)
    lines = [json.loads(line) for line in (run / "resources.jsonl").read_text().splitlines()]
    for line in lines[25:]:
        line["timestamp"] += 86_400.0
    (run / "resources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chart = str(resource_figures(read_run(run))[0].chart)
    assert "seconds since the start" in chart  # 68 s, not a day


def test_a_run_that_was_not_watched_has_no_such_section(write_run: WriteRun) -> None:
    run = write_run()
    assert resource_figures(read_run(run)) == []
    assert fault_figures(read_run(run)) == []
    page = build_report(run).read_text()
    assert "The machine" not in page
    assert "What happened" not in page


@pytest.mark.parametrize(
    ("count", "title"),
    [
        (1, "The other machine is busy 10 % of the time"),
        (3, "The 3 other machines are busy 10 % (n0) to 30 % (n2) of the time"),
        (12, "The 12 other machines are busy 10 % (n0) to 120 % (n11) of the time"),
    ],
)
def test_the_other_machines_of_a_cluster_are_drawn(write_run: WriteRun, count: int, title: str) -> None:
    run = write_run(num_samples=20)
    samples = [json.loads(line) for line in (run / "resources.jsonl").read_text().splitlines()]
    with (run / "nodes.jsonl").open("w") as file:
        for node in range(count):
            for line in samples[::2]:
                file.write(json.dumps(line | {"node": f"n{node}", "cpu_percent": 10.0 * (node + 1)}) + "\n")
    *_, last = resource_figures(read_run(run))
    assert " ".join(last.title.split()) == title  # its spaces are narrow
    assert len(last.legend) == min(count, 8)


def test_a_gpu_is_drawn_where_there_is_one(write_run: WriteRun) -> None:
    run = write_run(num_samples=20)
    lines = [json.loads(line) for line in (run / "resources.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"gpu_utilization": 25.0, "gpu_memory_used_gb": 2.0}
    (run / "resources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = resource_figures(read_run(run))
    assert "its GPUs 25" in figures[0].title
    assert "The GPUs hold 2.15 GB at most" in titles(figures)


def test_a_half_written_last_sample_is_left_out(write_run: WriteRun) -> None:
    run = write_run(num_samples=20)
    with (run / "resources.jsonl").open("a") as file:
        file.write('{"timestamp": 17673')
    assert len(read_run(run).resources) == 20


def test_many_samples_are_thinned_and_the_last_one_stays(write_run: WriteRun) -> None:
    run = write_run(num_samples=9000)
    samples = read_run(run).resources
    assert len(samples) <= 4000
    assert samples[-1].figures["monotonic_s"] == 8999.0


def test_events_stand_on_a_line_for_their_kind(write_run: WriteRun) -> None:
    events = [event(i, "rejected", round_index=i, worker=1) for i in (4, 5, 5)] + [event(9, "alert")]
    [drawn] = fault_figures(read_run(write_run(events=events)))
    assert drawn.title == "4 events, most of them 'rejected' (3)"
    assert "round 5, rejected: worker 1: because; worker 1: because" in str(drawn.chart)


def test_updates_and_reliability_of_each_worker(write_run: WriteRun) -> None:
    def change(lines: list[dict[str, Any]], *_: dict[str, Any]) -> None:
        for line in lines:
            for row in line["workers"]:
                row["reliability"] = 0.2 if row["worker"] == 3 else 0.9
        for line in lines[:5]:
            line["workers"][3] |= {"status": "rejected", "loss": None}
        lines[6]["workers"][3]["status"] = "left_out"

    updates, reliability = fault_figures(read_run(write_run(num_workers=4, num_groups=2, change=change)))
    assert updates.title.startswith("Worker 3 lost the most: 30")
    assert "worker 3: 5 of 20 rejected" in str(updates.chart)
    assert updates.table is not None
    assert updates.table.rows[3] == ("3", "14", "1", "5", "0", "0.200")
    assert reliability.title == "Worker 3 is relied on least: 0.2, the best at 0.9"


def test_workers_time_is_split(write_run: WriteRun) -> None:
    def change(lines: list[dict[str, Any]], *_: dict[str, Any]) -> None:
        for line in lines:
            for row in line["workers"]:
                row |= {"data_s": 0.5, "encode_s": 0.25}

    figures = cost_figures(read_run(write_run(change=change)))
    split = next(figure for figure in figures if "wait for data" in figure.title)
    assert split.title.replace("\xa0", " ") == "Workers wait for data 50 % of their time, and encode 25 %"


@pytest.mark.parametrize("line", ["[1]", '{"timestamp": "now"}'])
def test_broken_samples_are_named(write_run: WriteRun, line: str) -> None:
    from hqde.errors import RunError

    run = write_run(num_samples=3)
    (run / "resources.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match=r"resources\.jsonl line 1"):
        read_run(run)
