"""Loops on PyTorch's threads: all of the work once, side by side, and errors told."""

from __future__ import annotations

import threading

import pytest
import torch

from hqde import team
from hqde.backends import torch_threads


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_place_is_worked_on_once(threads, count):
    done = [0] * count

    def work(part):
        for i in range(count)[part]:
            done[i] += 1

    with torch_threads(threads):
        team.over_slices(count, work)
    assert done == [1] * count


@pytest.mark.skipif(not team.has_team(), reason="this PyTorch's threads cannot be had")
def test_slices_are_worked_on_at_the_same_time():
    both = threading.Barrier(2, timeout=30)
    with torch_threads(2):
        team.over_slices(2, lambda _: both.wait())


@pytest.mark.parametrize("with_team", [True, False])
def test_what_a_slice_raises_is_raised(with_team, monkeypatch):
    if not with_team:
        monkeypatch.setattr(team, "_start_of_team", lambda: None)

    def work(part):
        if part.stop == 2:
            raise ValueError("the second one")

    with torch_threads(2), pytest.raises(ValueError, match="the second one"):
        team.over_slices(2, work)


def test_without_a_team_all_is_worked_on_by_the_caller(monkeypatch):
    monkeypatch.setattr(team, "_start_of_team", lambda: None)
    seen = []
    with torch_threads(2):
        team.over_slices(4, lambda part: seen.append((part, threading.current_thread())))
    assert seen == [(slice(0, 2), threading.current_thread()), (slice(2, 4), threading.current_thread())]


def test_torch_keeps_working_in_between():
    rows = torch.rand(300, 300)
    with torch_threads(2):
        expected = rows + rows
        for _ in range(50):
            found = torch.zeros(300, 300).numpy()

            def work(part, found=found):
                found[part] = (rows[part] + rows[part]).numpy()

            team.over_slices(300, work)
            assert torch.equal(torch.from_numpy(found), expected)
