"""``hqde tune`` from the command line."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("optuna", reason="extra tune")

QUICK = ("--epochs", 1, "--set", "model.options.hidden=[8]", "--set", "run.workers=2")
RATE = ("--search", "training.learning_rate=log:1e-3:1e-1")


def test_tune_finds_settings_that_train_takes(hqde, table, tmp_path):
    done = hqde("tune", "--data", table, *QUICK, *RATE, "--trials", 4, "--parallel", 2, "--out", "study")
    assert done.code == 0, done.err
    assert "4 trials, as groups of one run" in done.out
    assert done.err.count("trial ") == 4
    trained = hqde("train", "--config", "study/best.toml", "--out", "run")
    assert trained.code == 0, trained.err
    again = hqde(
        "tune",
        "--data",
        table,
        *QUICK,
        *RATE,
        "--trials",
        6,
        "--parallel",
        2,
        "--out",
        "study",
        "--resume",
        "--format",
        "json",
    )
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert len(found["trials"]) == 6
    assert found["best"]["loss"] == min(trial["loss"] for trial in found["trials"])
    assert found["together"] is True


def test_ranges_may_stand_in_the_configuration(hqde, table, tmp_path):
    (tmp_path / "run.toml").write_text(
        '[run]\nepochs = 1\nworkers = 2\n[data]\nsource = "trees.csv"\n[model.options]\nhidden = [8]\n'
        '[search]\n"training.learning_rate" = "log:1e-3:1e-1"\n"run.workers" = [1, 2]\n'
    )
    done = hqde("tune", "--config", "run.toml", "--trials", 2, "--sampler", "tunnelling", "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["together"] is False
    assert set(found["best"]["values"]) == {"training.learning_rate", "run.workers"}
    assert (tmp_path / "study" / "best.toml").is_file()


def test_a_range_may_need_a_setting_that_the_trials_share(hqde, table):
    cold = ("--set", "training.optimizer=sgd", "--set", "training.nesterov=false")
    warm = ("--search", "training.temperature=0.1:1.0")
    done = hqde("tune", "--data", table, *QUICK, *cold, *warm, "--trials", 1, "--format", "json")
    assert done.code == 0, done.err
    assert 0.1 <= json.loads(done.out)["best"]["values"]["training.temperature"] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing to search"]),
        ([*RATE, "--trials", 0], ["trials must be at least 1, got 0"]),
        ([*RATE, "--sampler", "gp"], ["unknown sampler 'gp'", "known: random, tpe, tunnelling"]),
        (["--search", "training.lr=0.1:0.2"], ["unknown setting 'training.lr'"]),
        (["--search", "training.momentum=0.9:0.1"], ["must go up", "0.9 to 0.1"]),
        ([*RATE, "--resume"], ["study holds no study"]),
        ([*RATE, "--set", "data.validation_fraction=0.0"], ["validation"]),
    ],
    ids=str,
)
def test_bad_searches_are_one_sentence(hqde, table, tmp_path, arguments, words):
    done = hqde("tune", "--data", table, *QUICK, *arguments)
    assert done.code == 2, (done.code, done.out, done.err)
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err.replace("\n", " ")
