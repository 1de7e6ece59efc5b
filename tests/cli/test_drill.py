"""``hqde drill`` from the outside."""

from __future__ import annotations

import json

import pytest

SMALL = ("--workers", 5, "--epochs", 2, "--set", "model.options.hidden=[8]", "--set", "model.norm=group")
RULES = ("--rule", "mean", "--rule", "multi_krum")


def drill(hqde, table, *options):
    return hqde("drill", "--data", table, *SMALL, *RULES, "-f", 1, *options)


def test_a_drill_leaves_a_table_and_a_heat_map_and_finds_the_bad_worker(hqde, table, tmp_path):
    done = drill(hqde, table, "--attack", "scaled_update", "--attack", "label_flip", "--format", "json")
    assert done.code == 0, done.err
    trials = {(t["rule"], t["attack"]): t for t in json.loads(done.out)["trials"]}
    assert set(trials) == {
        (r, a) for r in ("mean", "multi_krum") for a in ("none", "scaled_update", "label_flip")
    }
    caught = trials["multi_krum", "scaled_update"]
    assert (caught["precision"], caught["recall"]) == (1.0, 1.0)
    assert list(caught["flagged"]) == ["4"]
    assert "4" in caught["reasons"]
    assert caught["accuracy"] > trials["mean", "scaled_update"]["accuracy"] - 0.05
    assert trials["mean", "none"]["recall"] is None
    page = (tmp_path / "drill" / "drill.html").read_text()
    assert "multi_krum" in page
    assert "label_flip" in page
    assert len((tmp_path / "drill" / "drill.jsonl").read_text().splitlines()) == 6


def test_an_interrupted_drill_goes_on_where_it_was(hqde, table, tmp_path):
    options = ("--attack", "alie", "--alpha", 1.0, "--out", "d")
    assert drill(hqde, table, *options).code == 0
    written = tmp_path / "d" / "drill.jsonl"
    lines = written.read_text().splitlines()
    written.write_text("\n".join(lines[:2]) + "\n")
    done = drill(hqde, table, *options, "--resume")
    assert done.code == 0, done.err
    again = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(again) == len(lines) == 4
    for one, other in zip(again, map(json.loads, lines), strict=True):
        assert {**one, "wall_s": 0} == {**other, "wall_s": 0}
    assert "dirichlet 1" in done.out
    assert "×: its multi_krum score is not among the 4 lowest" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--attack", "alien"], ["unknown attack 'alien'", "did you mean 'alie'"]),
        (["--rule", "krumm"], ["unknown rule 'krumm'", "did you mean 'krum'"]),
        (["--rule", "nmn+krum"], ["unknown pre-aggregator 'nmn'", "did you mean 'nnm'"]),
        (["-f", 2], ["multi_krum needs n >= 2f + 3: n=5, f=2", "num_byzantine=1"]),
        (["-f", 5], ["5 bad workers in groups of 5"]),
        (["--alpha", -1.0], ["alpha"]),
        (["--resume"], ["drill holds no drill to go on with"]),
        (["--attack", "optimal:mimic"], ["has no strength"]),
    ],
    ids=str,
)
def test_bad_usage_is_one_sentence_and_writes_nothing(hqde, table, tmp_path, options, words):
    done = drill(hqde, table, *options)
    assert done.code == 2, (done.out, done.err)
    assert done.err.startswith("error: ")
    for word in words:
        assert word in done.err
    assert not (tmp_path / "drill").exists()


def test_another_drill_is_left_alone(hqde, table, tmp_path):
    (tmp_path / "drill").mkdir()
    (tmp_path / "drill" / "note").write_text("mine")
    assert "drill is not empty" in drill(hqde, table).err


def test_a_run_with_a_robust_rule_from_the_command_line(hqde, table, tmp_path):
    rule = ("--set", "aggregation.rule=geometric_median", "--set", 'aggregation.mixing=["nnm"]')
    more = ("--set", "aggregation.num_byzantine=0.34", "--set", "aggregation.reliability=weigh")
    done = hqde("train", "--data", table, *SMALL, "--groups", 1, *rule, *more, "--out", "run")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["aggregation"]["rule"] == "geometric_median"
    assert len(metrics["aggregation"]["reliability"]) == 5
    line = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    assert sum(row["weight"] for row in line["workers"]) == pytest.approx(1.0)
    assert set(line["workers"][0]["outliers"]) == {"mad", "cosine", "euclidean"}
    assert hqde("report", "run").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["aggregation.rule=krumm"], ["unknown rule 'krumm'"]),
        (["aggregation.num_byzantine=0.7", "aggregation.rule=krum"], ["[0, 0.5]", "0.7"]),
        (["aggregation.num_byzantine=1"], ["'mean' bears no bad worker"]),
        (["aggregation.rule=krum", "aggregation.num_byzantine=2"], ["krum needs n >= 2f + 3: n=5, f=2"]),
        (["aggregation.options={num=1}", "aggregation.rule=krum"], ["has no setting 'num'"]),
        (["aggregation.norm_bound=0.5"], ["a factor above 1", "0.5"]),
        (["aggregation.max_loss_increase=-1"], ["max_increase"]),
        (["aggregation.reliability=trust"], ["aggregation.reliability", "trust"]),
        (['aggregation.mixing=["nmn"]'], ["unknown pre-aggregator 'nmn'"]),
    ],
    ids=str,
)
def test_bad_aggregation_settings_are_one_sentence(hqde, table, tmp_path, options, words):
    given = [word for option in options for word in ("--set", option)]
    done = hqde("train", "--data", table, *SMALL, "--groups", 1, *given, "--out", "run")
    assert done.code == 2, (done.out, done.err)
    for word in words:
        assert word in done.err
    assert not (tmp_path / "run").exists()
