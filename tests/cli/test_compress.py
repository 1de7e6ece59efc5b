"""``hqde compress`` from the outside, and what is predicted with what it wrote."""

from __future__ import annotations

import json
import shutil

import pytest

from hqde.cli.compress import parse_size
from hqde.ensemble import Ensemble
from hqde.errors import ConfigError

SMALL = ("--workers", 2, "--groups", 2, "--epochs", 8, "--set", "model.options.hidden=[64,64]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and its table, trained once for all tests here; nobody writes into them."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def run(hqde, write_table, trained, tmp_path):
    table = trained / "trees.csv"
    if not table.exists():
        write_table(table, rows=300)
        options = (*SMALL, "--set", "training.learning_rate=0.02", "--set", "data.validation_fraction=0.3")
        done = hqde("train", "--data", table, *options, "--out", trained / "run")
        assert done.code == 0, done.err
    return trained / "run"


def directory_bytes(path):
    return sum(file.stat().st_size for file in path.iterdir())


def test_a_run_becomes_a_smaller_artefact_with_its_validation_figures(hqde, run, tmp_path):
    done = hqde("compress", run, "--out", "small", "--format", "json")
    assert done.code == 0, done.err
    assert done.err == ""
    found = json.loads(done.out)
    assert found["bits"] == pytest.approx(4.0)
    assert found["bytes_before"] == directory_bytes(run / "artefact")
    assert found["bytes_after"] == directory_bytes(tmp_path / "small")
    assert found["ratio"] == found["bytes_before"] / found["bytes_after"] > 3
    assert found["validation"]["rows"] == 72  # three tenths of what is left after the test split
    before, after = found["validation"]["before"], found["validation"]["after"]
    assert abs(after["accuracy"] - before["accuracy"]) < 0.1
    assert set(before) == {"accuracy", "nll", "brier", "ece"}
    kinds = {row["kind"]: row for row in found["storage"]}
    assert kinds["Linear"]["numbers"] == 2 * 64 * 64
    assert 4 < kinds["Linear"]["bits"] < 4.4
    judged = json.loads(hqde("evaluate", "small", "--data", run.parent / "trees.csv", "--format", "json").out)
    assert judged["accuracy"] > 0.6


def test_the_tables_say_sizes_kinds_and_figures(hqde, run):
    done = hqde("compress", run, "--out", "small", "--bits", 3)
    assert done.code == 0, done.err
    for words in (
        "bytes: 1/",
        "at 3 bits",
        "Linear",
        "small, as float16",
        "validation rows",
        "nll",
        "before",
    ):
        assert words in done.out
    assert done.out.rstrip().endswith("artefact: small")
    assert "sensitivity: " in done.err


def test_an_artefact_alone_says_why_nothing_was_measured(hqde, run):
    done = hqde("compress", run / "artefact", "--out", "small")
    assert done.code == 0, done.err
    assert "accuracy not measured: " in done.out
    assert "name them with --data" in done.out
    found = json.loads(hqde("compress", run / "artefact", "--out", "b", "--format", "json").out)
    assert found["validation"] is None
    assert "--data" in found["no_validation_because"]
    judged = hqde(
        "compress", run / "artefact", "--out", "c", "--data", run.parent / "trees.csv", "--format", "json"
    )
    assert json.loads(judged.out)["validation"]["rows"] == 300


def test_a_run_whose_data_are_gone_is_compressed_without_them(hqde, run, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    config = tmp_path / "moved" / "config.toml"
    config.write_text(config.read_text().replace("trees.csv", "gone.csv"))
    done = hqde("compress", "moved", "--out", "small")
    assert done.code == 0, done.err
    assert "gone.csv" in done.out
    refused = hqde("compress", "moved", "--out", "b", "--max-accuracy-loss", 0.1)
    assert refused.code == 2
    assert "--max-accuracy-loss needs labelled rows" in refused.err


@pytest.mark.parametrize("budget", ["16KB", "15KiB", "17000"])
def test_a_budget_bounds_the_directory(hqde, run, tmp_path, budget):
    done = hqde("compress", run, "--out", "small", "--budget", budget, "--format", "json")
    assert done.code == 0, done.err
    assert parse_size(budget) - 600 < directory_bytes(tmp_path / "small") <= parse_size(budget)


def test_an_accuracy_bounds_the_loss(hqde, run):
    done = hqde("compress", run, "--out", "small", "--max-accuracy-loss", 0.02, "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    figures = found["validation"]
    assert figures["after"]["accuracy"] >= figures["before"]["accuracy"] - 0.02
    assert 2 <= found["bits"] <= 8


def test_prediction_in_little_memory_has_the_same_bits(hqde, run, tmp_path):
    assert hqde("compress", run, "--out", "small").code == 0
    table = run.parent / "trees.csv"
    assert hqde("predict", "small", "--data", table, "--out", "a.csv").code == 0
    assert hqde("predict", "small", "--data", table, "--out", "b.csv", "--low-memory").code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_an_existing_artefact_is_replaced_when_asked(hqde, run, tmp_path):
    assert hqde("compress", run, "--out", "small").code == 0
    first = directory_bytes(tmp_path / "small")
    refused = hqde("compress", run, "--out", "small", "--bits", 2)
    assert refused.code == 2
    assert "small exists; choose another directory, or say --overwrite" in refused.err
    assert directory_bytes(tmp_path / "small") == first
    assert hqde("compress", run, "--out", "small", "--bits", 2, "--overwrite").code == 0
    assert directory_bytes(tmp_path / "small") < first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    refused = hqde("compress", run, "--out", "mine", "--overwrite")
    assert refused.code == 2
    assert "diary.txt" in refused.err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", 1], "bits per weight lie in 2 to 16 on average, got 1"),
        (["--bits", 17], "got 17"),
        (["--bits", 4, "--budget", "5MB"], "--bits 4.0 and --budget 5MB contradict each other"),
        (["--budget", "5MB", "--max-accuracy-loss", 0.1], "contradict each other"),
        (["--budget", "5QB"], "unknown unit 'QB' in the size '5QB'"),
        (["--budget", "five"], "'five' is no size"),
        (["--budget", "1KB"], "bytes and the budget is 1000: allow at least"),
        (["--max-accuracy-loss", 1], "at least 0 and below 1, got 1"),
        (["--max-accuracy-loss", -0.1], "got -0.1"),
        (["--data", "missing.csv"], "missing.csv"),
    ],
    ids=str,
)
def test_bad_usage_is_one_sentence_and_writes_nothing(hqde, run, tmp_path, options, words):
    done = hqde("compress", run, "--out", "small", *options)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("error: ") == 1
    assert not (tmp_path / "small").exists()
    assert not list(tmp_path.glob(".*"))


def test_other_misuse(hqde, run, tmp_path):
    assert hqde("compress", run, "--out", "small").code == 0
    table = run.parent / "trees.csv"
    for arguments, words in (
        (["compress", "small", "--out", "b"], "member 0 is compressed already"),
        (["compress", "nowhere", "--out", "b"], "nowhere"),
        (["compress", run, "--out", run / "artefact", "--overwrite"], "is the artefact to be compressed"),
        (["predict", run, "--data", table, "--out", "p.csv", "--low-memory"], "holds full weights"),
        (
            ["predict", "small", "--data", table, "--out", "p.csv", "--low-memory", "--precision", "bf16"],
            "leave one out",
        ),
        (
            ["predict", "small", "--data", table, "--out", "p.csv", "--low-memory", "--backend", "ray"],
            "--backend ray decodes them all",
        ),
    ):
        done = hqde(*arguments)
        assert done.code == 2
        assert words in done.err
    assert len(Ensemble.load(run / "artefact")) == 2


def test_sizes_in_words():
    assert [parse_size(text) for text in ("5MB", "500kb", "1.5MiB", "7", " 2 GB ", ".5KiB", "8B")] == [
        5_000_000,
        500_000,
        1_572_864,
        7,
        2_000_000_000,
        512,
        8,
    ]
    for text in ("", "MB", "-5MB", "5 M B", "1e3", "5MBit"):
        with pytest.raises(ConfigError):
            parse_size(text)
