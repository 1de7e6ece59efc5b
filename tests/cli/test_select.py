"""``hqde select`` on what a training left."""

from __future__ import annotations

import json

import pytest

from hqde.cli.select import parse_bytes
from hqde.ensemble import Ensemble
from hqde.errors import ConfigError

SMALL = ("--workers", 4, "--groups", 4, "--epochs", 6, "--set", "training.learning_rate=0.03")


@pytest.fixture
def run(hqde, write_table, tmp_path):
    table = write_table(tmp_path / "trees.csv", rows=240)
    assert hqde("train", "--data", table, *SMALL, "--out", "run").code == 0
    return tmp_path / "run"


def test_select_names_members_and_saves_them(hqde, run, tmp_path):
    done = hqde("select", run, "--size", 2, "--out", "small", "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(found["selected"]) == 2
    assert set(found["selected"]) <= {0, 1, 2, 3}
    assert (found["solver"], found["exact"]) == ("brute", True)
    assert (found["selecting_rows"], found["judging_rows"]) == (19, 48)
    assert [row["set"] for row in found["comparison"]] == [
        "selected", "best single", "top 2", "greedy", "all"
    ]  # fmt: skip
    saved = Ensemble.load(tmp_path / "small")
    assert list(saved.member_ids) == found["selected"]
    figures = json.loads(hqde("evaluate", tmp_path / "small", "--data", "trees.csv", "--format", "json").out)
    assert figures["num_rows"] == 240


def test_the_table_shows_all_five_and_the_budget_is_kept(hqde, run):
    done = hqde("select", run, "--size", 3, "--max-bytes", "1GB", "--max-ms", 1e6, "--sampler", "greedy")
    assert done.code == 0, done.err
    for name in ("selected", "best single", "top 3", "greedy", "all"):
        assert name in done.out
    assert "19 rows to select, 48 to judge" in done.out
    assert "not proven best" in done.out


def test_other_rows_are_divided(hqde, run):
    done = hqde(
        "select", run / "artefact", "--size", 1, "--data", "trees.csv", "--seed", 3, "--format", "json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["judging_rows"] == 120


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", 9], ["size=9", "of 4"]),
        (["--size", 0], ["size=0"]),
        (["--size", 2, "--sampler", "anneal"], ["unknown sampler 'anneal'"]),
        (["--size", 2, "--max-bytes", "10B"], ["no 2 members keep to the budget", "10 bytes"]),
        (["--size", 2, "--max-bytes", "5 parsecs"], ["no number of bytes"]),
        (["--size", 2, "--out", "run"], ["is not empty"]),
        (["--size", 2, "--data", "missing.csv"], ["missing.csv"]),
    ],
    ids=str,
)
def test_bad_usage_is_one_sentence(hqde, run, arguments, words):
    done = hqde("select", "run", *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert all(word in done.err for word in words), done.err


def test_an_artefact_does_not_know_its_data(hqde, run):
    done = hqde("select", run / "artefact", "--size", 2)
    assert done.code == 2
    assert "--data" in done.err


def test_bytes_are_read_in_both_kinds_of_units():
    assert [parse_bytes(text) for text in ("7", "5MB", "0.5 kB", "2MiB")] == [7, 5_000_000, 500, 2**21]
    for text in ("MB", "-5MB", "5mb", "1e6", ""):
        with pytest.raises(ConfigError, match="no number of bytes"):
            parse_bytes(text)
