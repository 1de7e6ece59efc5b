"""What is read from a run directory, and how a broken one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hqde.errors import RunError
from hqde.reporting import read_run
from hqde.reporting.document import Document

WriteRun = Callable[..., Path]


def test_a_finished_run_is_read_whole(write_run: WriteRun) -> None:
    events = [{"time": "2026-01-01T00:00:00", "round": 3, "kind": "rejected", "worker": 2, "reason": "NaN"}]
    record = read_run(write_run(events=events))
    assert record.finished
    assert record.task == "classification"
    assert len(record.rounds) == 20
    assert record.worker_ids == tuple(range(8))
    assert record.groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert record.rounds[4].workers[2].samples == 5000
    assert record.rounds[0].phases["aggregate"] == 0.05
    assert record.last_validation is not None
    assert [member.member for member in record.last_validation.members] == [0, 1, 2, 3]
    assert (record.events[0].kind, record.events[0].worker, record.events[0].round_index) == (
        "rejected",
        2,
        3,
    )
    assert record.class_name(3) == "3"
    assert record.class_name(11) == "11"
    assert '"digits"' in record.config


def test_an_unfinished_run_is_read(write_run: WriteRun) -> None:
    record = read_run(write_run(finished=False))
    assert (record.finished, record.metrics, record.evaluation) == (False, None, None)


def test_regression_is_known_by_its_validation_before_it_ends(write_run: WriteRun) -> None:
    assert read_run(write_run(regression=True, finished=False)).task == "regression"


@pytest.mark.parametrize("end", ['{"round": 21, "epo', '{"round": 21, "epoch": "caf\u00e9', "{"])
def test_a_half_written_last_line_is_passed_over(write_run: WriteRun, end: str) -> None:
    run = write_run(finished=False)
    whole = (run / "history.jsonl").read_bytes()
    (run / "history.jsonl").write_bytes(whole + end.encode()[: len(end)])  # may cut a character in two
    assert len(read_run(run).rounds) == 20


def test_every_prefix_of_a_history_is_read_or_has_no_round(write_run: WriteRun) -> None:
    run = write_run(finished=False, num_rounds=2, num_workers=1, num_groups=1, branch_at=1)
    whole = (run / "history.jsonl").read_bytes()
    first = whole.index(b"\n")
    for cut in range(0, len(whole) + 1, 7):
        (run / "history.jsonl").write_bytes(whole[:cut])
        if cut < first:
            with pytest.raises(RunError, match="no finished round"):
                read_run(run)
        else:
            assert len(read_run(run).rounds) in (1, 2)


def test_broken_json_in_the_middle_names_its_line(write_run: WriteRun) -> None:
    run = write_run()
    lines = (run / "history.jsonl").read_text().splitlines()
    lines[6] = lines[6][:40]
    (run / "history.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=r"history\.jsonl line 7 is not valid JSON"):
        read_run(run)


def test_a_broken_last_line_that_was_ended_is_not_half_written(write_run: WriteRun) -> None:
    run = write_run()
    with (run / "history.jsonl").open("a") as file:
        file.write("oops\n")
    with pytest.raises(RunError, match="line 21"):
        read_run(run)


def test_a_round_that_was_run_again_counts_as_it_came_out_last(write_run: WriteRun) -> None:
    run = write_run(finished=False)
    again = json.loads((run / "history.jsonl").read_text().splitlines()[4])
    again["wall_s"] = 99.0
    with (run / "history.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    record = read_run(run)
    assert [line.round_index for line in record.rounds] == list(range(1, 21))
    assert record.rounds[4].wall_s == 99.0


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such directory"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RunError, match=r"neither history\.jsonl nor config\.toml"):
        read_run(tmp_path)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(RunError, match="no finished round yet"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "evaluation.json"])
def test_broken_figures_name_their_file(write_run: WriteRun, name: str) -> None:
    run = write_run()
    (run / name).write_text('{"accuracy":\n 0.9')
    with pytest.raises(RunError, match=f"{name} is not valid JSON"):
        read_run(run)
    (run / name).write_text("[1]")
    with pytest.raises(RunError, match="must hold one JSON object, got a list"):
        read_run(run)
    (run / name).write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="cannot be read as text"):
        read_run(run)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("round", "one", "line 1: round must be a whole number, got 'one'"),
        ("round", None, "line 1: round must be a whole number, got None"),
        ("round", True, "line 1: round must be a whole number, got True"),
        ("wall_s", "fast", "line 1: wall_s must be a number, got 'fast'"),
        ("workers", 3, "line 1: workers must be a list, got 3"),
        ("workers", [3], "line 1: workers must be a list of objects, got 3"),
        ("groups", [0, 1], "line 1: groups must be a list of lists of worker ids"),
        ("phases", [1], r"line 1: phases must be an object, got \[1\]"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(write_run: WriteRun, key: str, value: Any, sentence: str) -> None:
    run = write_run(num_rounds=3, branch_at=1)
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    lines[0][key] = value
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunError, match=sentence):
        read_run(run)


def test_numbers_that_are_not_finite_read_as_missing() -> None:
    found = Document("x", json.loads('{"a": NaN, "b": Infinity, "c": null, "d": [1, NaN]}'))
    assert [found.number(key) for key in "abc"] == [None, None, None]
    assert found.numbers("d") == [1.0, None]


def test_a_matrix_must_be_square() -> None:
    with pytest.raises(RunError, match="must be a square matrix"):
        Document("x", {"m": [[1, 2], [3]]}).matrix("m")
