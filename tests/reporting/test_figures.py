"""The sentences that the charts carry, on runs whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from hqde.reporting import read_run
from hqde.reporting.costs import cost_figures
from hqde.reporting.headline import sentences, tiles, warnings
from hqde.reporting.membership import member_figures
from hqde.reporting.panel import Figure
from hqde.reporting.regression import regression_figures
from hqde.reporting.reliability import reliability_figures, wilson_interval
from hqde.reporting.timeline import timeline
from hqde.reporting.validation_curves import rounds_table, validation_figures
from hqde.reporting.worker_curves import worker_figures

WriteRun = Callable[..., Path]
Change = Callable[[list[dict[str, Any]], dict[str, Any], dict[str, Any]], None]


def titles(figures: list[Figure]) -> str:
    return "\n".join(figure.title.replace("\N{NO-BREAK SPACE}", " ") for figure in figures)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 10), (218, 218), (50, 100)])
def test_the_interval_of_a_share_is_scipys(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_members_are_counted_against_the_ensemble(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        for member, (accuracy, nll) in enumerate([(0.97, 0.05), (0.985, 0.08), (0.96, 0.09), (0.99, 0.2)]):
            evaluation["members"][member] |= {"accuracy": accuracy, "nll": nll}

    told = titles(member_figures(read_run(write_run(change=change))))
    assert "On test accuracy the ensemble (98.10 %) beats 2 of its 4 members" in told
    assert "On test NLL the ensemble (0.071) beats 3 of its 4 members" in told


def test_the_pair_that_disagrees_most_is_named(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        evaluation["disagreement_matrix"] = [
            [0, 0.1, 0.2, 0.1],
            [0.1, 0, 0.1, 0.3],
            [0.2, 0.1, 0, 0.1],
            [0.1, 0.3, 0.1, 0],
        ]

    told = titles(member_figures(read_run(write_run(change=change))))
    assert "disagree on 15.0 % of the test examples on average; members 1 and 3 most, on 30.0 %" in told


def test_the_pair_that_overlaps_least_is_named(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        evaluation["entanglement_matrix"] = [
            [1.0, 0.9, 0.92, 0.94],
            [0.9, 1.0, 0.8, 0.9],
            [0.92, 0.8, 1.0, 0.94],
            [0.94, 0.9, 0.94, 1.0],
        ]

    figures = member_figures(read_run(write_run(change=change)))
    assert "overlap by 90.00 % on average; least those of members 1 and 2, by 80.00 %" in titles(figures)
    assert [cell.split()[0] for cell in figures[-1].table.rows[1][1:]] == ["90.0", "100.0", "80.0", "90.0"]


def test_a_run_of_an_earlier_version_has_no_entanglement_matrix(write_run: WriteRun) -> None:
    assert "Entanglement" not in titles(member_figures(read_run(write_run())))


def test_a_mark_stands_where_the_groups_part(write_run: WriteRun) -> None:
    (mark,) = timeline(read_run(write_run(branch_at=12))).marks
    assert (mark.x, mark.word) == (12.0, "4 groups")


def test_events_are_marks_and_those_of_one_round_share_theirs(write_run: WriteRun) -> None:
    def event(round_index: int, kind: str, worker: int | None = None) -> dict[str, Any]:
        return {"time": "", "round": round_index, "kind": kind, "worker": worker, "reason": kind}

    events = [
        event(12, "branched"),
        event(12, "resumed"),
        event(15, "early_stop"),
        event(3, "rejected", 2),
        event(99, "resumed"),
    ]
    marks = timeline(read_run(write_run(branch_at=12, events=events))).marks
    assert [(mark.x, mark.word) for mark in marks] == [(12.0, "branched, resumed"), (15.0, "early stop")]


def test_rounds_within_an_epoch_are_told_apart_by_their_number(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        for line in lines:
            line["epoch"] = 1 + line["round"] // 4

    axis = timeline(read_run(write_run(change=change)))
    assert (axis.label, axis.positions[-1]) == ("round", 20.0)


def test_overfitting_is_said(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        for line in lines:
            line["validation"]["loss"] = 0.5 + abs(line["round"] - 7) / 20

    assert "it was lowest in epoch 7 (0.5), so the run overfits" in titles(
        validation_figures(read_run(write_run(change=change)))
    )


def test_the_learning_rates_peak_and_restart_are_found(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        for line in lines:
            for row in line["workers"]:
                row["lr"] = (0.01 if line["round"] < 12 else 0.007) * (1 - (line["round"] % 12) / 13)

    told = titles(worker_figures(read_run(write_run(change=change))))
    assert "peaks at 0.00923 in epoch 1 and ends at 0.00269; it restarts in epoch 12" in told


def test_a_rejected_update_is_crossed_and_explained(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        lines[4]["workers"][2] |= {"loss": None, "status": "rejected"}

    events = [{"time": "", "round": 5, "kind": "rejected", "worker": 2, "reason": "its loss is NaN"}]
    record = read_run(write_run(change=change, events=events))
    (loss, *_) = worker_figures(record)
    assert "round 5: worker 2 rejected: its loss is NaN" in str(loss.chart)
    assert warnings(record) == ["1 update was rejected: the reasons are under Events."]


def test_a_clean_run_warns_of_nothing(write_run: WriteRun) -> None:
    assert warnings(read_run(write_run())) == []


def test_faults_that_only_the_metrics_know_are_said(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        figures["faults"] = {"failures": 2, "rejected": 3}

    assert warnings(read_run(write_run(change=change))) == [
        "3 updates were rejected; a worker failed 2 times."
    ]


def test_the_verdict_counts_points_and_says_when_temperature_harms(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        figures["calibrated"]["nll"] = 0.1

    verdict, temperature = sentences(read_run(write_run(change=change)))
    assert verdict.replace("\N{NO-BREAK SPACE}", " ") == (
        "The ensemble of 4 members classifies 98.1 % of the test examples correctly, "
        "1.1 points more than its members do on average."
    )
    assert (
        "lowers the calibration error from 0.021 to 0.008 and raises the NLL from 0.071 to 0.100"
        in temperature
    )


def test_the_headline_has_every_figure(write_run: WriteRun) -> None:
    found = {tile.name: (tile.value, tile.note) for tile in tiles(read_run(write_run()))}
    assert found["peak memory"][0] == "734 MB"
    assert found["bytes sent"] == ("64 MB", "as plain float32")
    assert found["throughput"] == ("12,346 /s", "800,000 worker-samples in all")
    assert found["calibration error (ECE)"] == ("0.021", "0.008 calibrated")
    assert found["effective members"][0] == "1.9"


def test_over_confidence_is_weighed_by_the_counts(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        evaluation["reliability"] = {"confidence": [0.3, 0.9], "accuracy": [0.5, 0.8], "count": [10, 90]}

    told = titles(reliability_figures(read_run(write_run(change=change))))
    # (10 * (0.3 - 0.5) + 90 * (0.9 - 0.8)) / 100 = 0.07 and (10 * 0.2 + 90 * 0.1) / 100 = 0.11
    assert "As trained: over-confident by 7.0 % on average, ECE 0.110" in told


def test_the_phases_add_up(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        for line in lines:
            line |= {"phases": {"train": 3.0, "aggregate": 0.5, "gossip": 0.5}, "wall_s": 5.0}

    time, workers, sent = cost_figures(read_run(write_run(change=change)))
    assert "Training takes 60 % of the 1 min 40 s" in titles([time])
    assert time.table is not None
    assert [row[0] for row in time.table.rows] == ["train", "aggregate", "gossip", "other"]
    assert "within 5 % of the median" in titles([workers])
    assert "Workers sent 64 MB in 20 rounds, the same as what plain float32 takes" in titles([sent])


def test_a_straggler_is_named(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        for line in lines:
            line["workers"][5]["seconds"] = 2.5

    assert "Worker 5 is the slowest: 2.5 times" in titles(cost_figures(read_run(write_run(change=change))))


def test_residuals_are_read_by_hand(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        evaluation["residuals"] = {"predicted": [2.0, 4.0, 6.0, 8.0], "target": [1.0, 3.0, 5.0, 7.0]}

    told = titles(regression_figures(read_run(write_run(regression=True, change=change))))
    assert "explains 80.0 % of the targets' variance" in told  # 1 - 4 / 20
    assert "too high by 1 on average (RMSE 1)" in told
    assert "Half of the predictions are within ±1" in told


def test_a_squared_loss_is_not_drawn_beside_its_root(write_run: WriteRun) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        for line in lines:
            line["validation"]["loss"] = line["validation"]["rmse"] ** 2

    assert "NLL" not in titles(validation_figures(read_run(write_run(regression=True, change=change))))


def test_a_long_tables_last_row_is_the_last_round(write_run: WriteRun) -> None:
    table = rounds_table(read_run(write_run(num_rounds=95)))
    assert len(table.rows) <= 40
    assert table.rows[-1][0] == "95"
    assert "one of every 3" in table.summary
