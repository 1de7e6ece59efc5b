"""Replacing a bundle: at every moment the older or the newer one is whole, and nothing foreign is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from hqde.checkpoints import read_bundle, write_bundle
from hqde.errors import CheckpointError, PreconditionError


def write(path: Path, round_index: int) -> None:
    write_bundle(
        path,
        manifest={"round": round_index},
        tensors={
            "a": {"x": torch.full((3,), float(round_index))},
            f"only-{round_index}": {"y": torch.ones(1)},
        },
    )


def check(path: Path) -> int:
    """The round a bundle holds, after its tensors were seen to belong to the same round."""
    bundle = read_bundle(path)
    round_index = bundle.manifest["round"]
    assert bundle.tensors["a"]["x"].tolist() == [float(round_index)] * 3
    assert f"only-{round_index}" in bundle.tensors
    return round_index


class CrashCamera:
    """Copies a folder before and after each file-system call: what a crash there would leave behind."""

    CALLS = ("mkdir", "rename", "fsync", "unlink", "rmdir")

    def __init__(self, folder: Path, shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.shots, self.count, self.taking = folder, shots, 0, False
        shots.mkdir()
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, call):
        def watched(*args, **kwargs):
            self._shoot()
            result = call(*args, **kwargs)
            self._shoot()
            return result

        return watched

    def _shoot(self) -> None:
        if not self.taking:
            self.taking = True
            shutil.copytree(self.folder, self.shots / f"{self.count:04d}")
            self.count += 1
            self.taking = False


def test_a_crash_at_any_moment_leaves_the_old_or_the_new_bundle(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write(folder / "b", 1)
    with monkeypatch.context() as patched:
        camera = CrashCamera(folder, tmp_path / "shots", patched)
        write(folder / "b", 2)
    seen = []
    for shot in sorted(camera.shots.iterdir()):
        seen.append(check(shot / "b"))
        write(shot / "b", 3)  # and the next write recovers from whatever lies around
        assert check(shot / "b") == 3
        assert [entry.name for entry in shot.iterdir()] == ["b"]
    assert camera.count > 20
    assert seen == sorted(seen)
    assert {1, 2} == set(seen)


def test_a_first_write_shows_nothing_until_it_is_whole(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patched:
        camera = CrashCamera(folder, tmp_path / "shots", patched)
        write(folder / "b", 1)
    shown = [(shot / "b").exists() for shot in sorted(camera.shots.iterdir())]
    assert shown == sorted(shown)
    assert not shown[0]
    for shot in camera.shots.iterdir():
        if (shot / "b").exists():
            assert check(shot / "b") == 1


def test_a_crash_while_recovering_from_a_crash_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write(folder / "b", 1)
    os.rename(folder / "b", folder / ".b.old")  # the moment between the two renames
    assert check(folder / "b") == 1
    with monkeypatch.context() as patched:
        camera = CrashCamera(folder, tmp_path / "shots", patched)
        write(folder / "b", 2)
    assert {check(shot / "b") for shot in camera.shots.iterdir()} == {1, 2}
    assert [entry.name for entry in folder.iterdir()] == ["b"]


@pytest.mark.parametrize("failing", range(1, 3))
def test_a_rename_that_fails_puts_the_old_bundle_back(tmp_path, monkeypatch, failing):
    write(tmp_path / "b", 1)
    rename, calls = os.rename, []

    def sometimes(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", sometimes)
        with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
            write(tmp_path / "b", 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    assert check(tmp_path / "b") == 1


def test_a_disk_that_is_full_leaves_the_old_bundle(tmp_path, monkeypatch):
    write(tmp_path / "b", 1)

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="free space or choose another path"):
            write(tmp_path / "b", 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    assert check(tmp_path / "b") == 1


def test_files_and_folders_are_flushed_before_the_rename(tmp_path, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.rename

    def flushed(handle):
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(source, target):
        order.append(f"{Path(source).name} -> {Path(target).name}")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", flushed)
        patched.setattr(os, "rename", renamed)
        write(tmp_path / "b", 1)
    assert order == [
        "a.safetensors",
        "only-1.safetensors",
        "manifest.json",
        ".b.new",
        ".b.new -> b",
        tmp_path.name,
    ]


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    write(tmp_path / "b", 1)
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(PreconditionError, match=r"thesis\.tex, which would be lost"):
        write(tmp_path / "b", 2)
    assert check(tmp_path / "b") == 1
    (tmp_path / "file").write_text("x")
    with pytest.raises(PreconditionError, match="is a file"):
        write(tmp_path / "file", 1)
    assert (tmp_path / "file").read_text() == "x"


def test_an_empty_folder_a_damaged_bundle_and_a_link_can_be_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", 1)
    assert check(tmp_path / "empty") == 1
    (tmp_path / "empty" / "manifest.json").write_text("damaged")
    write(tmp_path / "empty", 2)
    assert check(tmp_path / "empty") == 2
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write(tmp_path / "link", 3)
    assert (tmp_path / "link").is_symlink()
    assert check(tmp_path / "empty") == check(tmp_path / "link") == 3


def test_missing_parents_are_made(tmp_path):
    write(tmp_path / "runs" / "first" / "b", 1)
    assert check(tmp_path / "runs" / "first" / "b") == 1
