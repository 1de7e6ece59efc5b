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
