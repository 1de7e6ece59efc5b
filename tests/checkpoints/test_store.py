"""The checkpoint store: names, pruning, the newest bundle, and what a crash or damage leaves."""

from __future__ import annotations

import os

import pytest
import torch

from hqde.checkpoints import CheckpointStore
from hqde.errors import CheckpointError, ConfigError, PreconditionError


def save(store: CheckpointStore, *rounds: int) -> None:
    for index in rounds:
        store.save(index, {"lr": index / 10}, {"group-0": {"w": torch.full((2,), float(index))}})


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_an_empty_store_has_no_latest(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.latest() is None
    assert store.rounds() == []
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_keep_stay(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep=keep)
    save(store, 0, 1, 5, 12)
    assert store.rounds() == [0, 1, 5, 12][-keep:]
    assert names(tmp_path)[-1] == "round-000012"
    round_index, bundle = store.latest()
    assert round_index == bundle.manifest["round_index"] == 12
    assert bundle.manifest["lr"] == 1.2
    assert bundle.tensors["group-0"]["w"].tolist() == [12.0, 12.0]


def test_rounds_beyond_a_million_keep_their_order(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 999_999, 1_000_000)
    assert store.latest()[0] == 1_000_000


def test_a_half_written_bundle_is_skipped_and_cleared(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 3)
    half = tmp_path / ".round-000004.new"
    half.mkdir()
    (half / "group-0.safetensors").write_bytes(b"half")
    removed_by_half = tmp_path / ".round-000002.gone"
    removed_by_half.mkdir()
    assert store.latest()[0] == 3
    save(store, 5)
    assert names(tmp_path) == ["round-000005"]


def test_a_round_saved_again_survives_a_crash_between_the_renames(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 3)
    os.rename(tmp_path / "round-000003", tmp_path / ".round-000003.old")
    assert store.latest()[0] == 3
    save(store, 3)
    assert names(tmp_path) == ["round-000003"]
    os.rename(tmp_path / "round-000003", tmp_path / ".round-000003.old")
    save(store, 4)
    assert names(tmp_path) == ["round-000004"]


def test_a_damaged_newest_names_the_older_one(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 6, 7)
    file = tmp_path / "round-000007" / "group-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cut short.*Remove .*round-000007 to go on from round 6\."):
        store.latest()
    assert store.read(6).manifest["round_index"] == 6
    store.path(7).rename(tmp_path / "elsewhere")
    assert store.latest()[0] == 6


def test_a_damaged_only_one_says_that_there_is_no_other(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 6)
    (tmp_path / "round-000006" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing.*There is no older checkpoint\."):
        store.latest()


def test_a_renamed_bundle_is_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 6)
    store.path(6).rename(store.path(9))
    with pytest.raises(CheckpointError, match="holds round 6"):
        store.latest()


def test_going_back_and_bad_settings_are_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 6)
    with pytest.raises(PreconditionError, match="round 5 comes before round 6"):
        save(store, 5)
    with pytest.raises(PreconditionError, match="at least 0, got -1"):
        save(CheckpointStore(tmp_path / "new"), -1)
    with pytest.raises(ConfigError, match="keep=0"):
        CheckpointStore(tmp_path, keep=0)
