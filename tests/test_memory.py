"""Freed memory that stays with the process."""

from __future__ import annotations

import platform
import resource
import threading

import psutil
import pytest
import torch

from hqde import memory
from hqde.memory import freed_memory_kept


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def blocks_in_turn() -> None:
    """What a step of training does: large blocks of several sizes, some of which outlive others."""
    kept = []
    for size in (8, 4, 2, 8, 4):
        block = torch.ones(size << 18)
        kept.append(block[:1].clone())
        del block


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_that_were_freed_cost_no_page_faults_again() -> None:
    with freed_memory_kept():
        for _ in range(10):
            blocks_in_turn()
        faults = []
        for _ in range(3):  # the heap of a process that is not new may need a block more at first
            before = page_faults()
            for _ in range(10):
                blocks_in_turn()
            faults.append(page_faults() - before)
        assert min(faults) < 500  # of 66 560 pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_at_the_end_memory_is_given_back() -> None:
    def resident() -> int:
        rss: int = psutil.Process().memory_info().rss
        return rss

    with freed_memory_kept():
        blocks = [torch.ones(1 << 18) for _ in range(200)]
        del blocks
        within = resident()
    assert resident() < within - (100 << 20)


def test_the_outermost_of_several_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple[int, ...]]] = []
    monkeypatch.setattr(memory, "_call", lambda name, *arguments: calls.append((name, arguments)))

    @freed_memory_kept()
    def nested() -> int:
        with freed_memory_kept():
            return len(calls)

    assert nested() == len(memory.KEEP)
    assert calls[-1] == ("malloc_trim", (0,))
    del calls[:]
    inside = threading.Barrier(2)

    def other() -> None:
        with freed_memory_kept():
            inside.wait(10)

    thread = threading.Thread(target=other)

    @freed_memory_kept()
    def fails() -> None:
        thread.start()
        inside.wait(10)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fails()
    thread.join()
    assert [name for name, _ in calls].count("malloc_trim") == 1


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    with freed_memory_kept():
        assert torch.ones(3).sum() == 3
