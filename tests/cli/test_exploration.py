"""``hqde train`` with what makes workers explore: coupled replicas, noise, snapshots; and what it refuses."""

from __future__ import annotations

import json

import pytest

SMALL = ("--workers", 4, "--groups", 2, "--epochs", 3, "--set", "model.options.hidden=[8]")


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_elastic_couplings_are_settings_and_stand_in_the_history(hqde, table, tmp_path):
    pulls = ("group_pull=0.2", "group_pull_end=0.8", "global_pull_end=0.9", "shape=cosine")
    settings = [part for pull in pulls for part in ("--set", f"topology.elastic.{pull}")]
    done = hqde("train", "--data", table, *SMALL, *settings, "--out", "run")
    assert done.code == 0, done.err
    rounds = history(tmp_path / "run")
    assert [line["scope"] for line in rounds] == ["global"] * 3
    assert [round(line["group_pull"], 4) for line in rounds] == [0.2, 0.35, 0.65]
    assert rounds[-1]["global_pull"] == pytest.approx(0.9)
    again = hqde("train", "--config", "run/config.toml", "--out", "again")
    assert again.code == 0, again.err
    for name in ("manifest.json", "member-000.safetensors", "member-001.safetensors"):
        assert (tmp_path / "run/artefact" / name).read_bytes() == (
            tmp_path / "again/artefact" / name
        ).read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["topology.elastic.group_pull=2"], ["group_pull lies between 0", "got 2"]),
        (["topology.elastic.grup_pull=0.5"], ["topology.elastic.grup_pull", "did you mean 'group_pull'"]),
        (["topology.elastic.group_pull=0.5", "topology.groups=4"], ["alone in its group", "global_pull"]),
        (["topology.elastic.global_pull=0.5", "topology.branch_at=0.5"], ["branch_at=0.5", "use one of"]),
        (["training.temperature=1.0"], ["not of adamw", "optimizer = 'sgd'"]),
        (["training.cycles=3", "topology.branch_at=0.4"], ["3 cycles and a restart where groups branch"]),
        (["diversity.entangled_noise=0.1", "topology.groups=4"], ["each of 4 groups has one"]),
        (["privacy.clip_norm=1.0"], ["data.partition (replicate)", "'iid' or 'dirichlet'"]),
        (["privacy.clip_norm=1.0", "data.partition=iid"], ["running statistics", "model.norm=group"]),
        (["ensemble.snapshots.count=3"], ["3 snapshots", "at least 4 epochs", "the run has 3"]),
        (["privacy.noise_multiplier=0.0"], ["without noise there is no privacy"]),
        (["privacy.clip_norm=1.0", "data.partition=iid", "privacy.delta=0.3"], ["less than 0.25"]),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_sentence(hqde, table, tmp_path, settings, words):
    given = [part for setting in settings for part in ("--set", setting)]
    done = hqde("train", "--data", table, *SMALL, *given, "--out", "run")
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


PRIVATE = ("--set", "model.norm=group", "--set", "data.partition=iid", "--set", "privacy.clip_norm=0.5")


def test_a_private_run_tells_what_it_has_spent(hqde, table, tmp_path):
    pytest.importorskip("opacus", reason="extra privacy")
    done = hqde("train", "--data", table, *SMALL, *PRIVATE, "--set", "privacy.delta=0.01", "--out", "run")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    spent = [line["epsilon"] for line in history(tmp_path / "run")]
    assert spent == sorted(spent)
    assert metrics["privacy"]["epsilon"] == spent[-1] > 0
    assert f"privacy: ε {spent[-1]:.4g} at δ 0.01 after 3 round(s)" in done.out
    assert metrics["privacy"]["secret_noise"] is True
    assert "key" not in (tmp_path / "run/config.toml").read_text()
    plain = hqde("train", "--data", table, *SMALL, "--out", "plain")
    assert plain.code == 0, plain.err
    assert "privacy" not in plain.out
    assert json.loads((tmp_path / "plain/metrics.json").read_text())["privacy"] is None


def test_heated_cycles_train_from_settings(hqde, table, tmp_path):
    heat = ("optimizer=sgd", "nesterov=false", "clip_norm=0.0", "warmup=0.0", "cycles=3", "temperature=0.01")
    settings = [part for setting in heat for part in ("--set", f"training.{setting}")]
    done = hqde("train", "--data", table, *SMALL, *settings, "--out", "run")
    assert done.code == 0, done.err
    rates = [line["workers"][0]["lr"] for line in history(tmp_path / "run")]
    assert rates == pytest.approx([rates[0]] * 3), "every epoch is a cycle, and ends as low"


def test_select_chooses_among_snapshots_too(hqde, write_table, tmp_path):
    table = write_table(tmp_path / "many.csv", rows=240)
    kept = ("--set", "ensemble.snapshots.count=2", "--set", "training.cycles=3")
    done = hqde("train", "--data", table, *SMALL, *kept, "--out", "run")
    assert done.code == 0, done.err
    found = json.loads(hqde("select", "run", "--size", 3, "--out", "three", "--format", "json").out)
    everybody = next(row for row in found["comparison"] if row["set"] == "all")
    assert everybody["members"] == [0, 1, 2, 3, 4, 5]
    assert len(found["selected"]) == 3
    own = json.loads(hqde("select", "run", "--size", 2, "--no-pool", "--format", "json").out)
    assert own["selected"] == [0, 1]
    too_many = hqde("select", "run", "--size", 7)
    assert too_many.code == 2
    assert "size=7 members cannot be chosen of 6: use 1 to 6" in too_many.err


def test_groups_and_members_are_counted_apart(hqde, table, tmp_path):
    kept = ("--set", "ensemble.snapshots.count=2", "--set", "ensemble.snapshots.join=true")
    done = hqde("train", "--data", table, *SMALL, *kept, "--out", "run")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["workers"], metrics["groups"], len(metrics["members"])) == (4, 2, 6)
    assert "6 member(s) from 4 worker(s)" in done.out
