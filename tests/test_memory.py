"""Freed memory that stays with the process."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
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

    assert nested() == len(memory.KEEP) + 1  # and the heaps
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


HEAPS = """
import ctypes, re, sys, tempfile, threading
import torch
from hqde import memory
from hqde.memory import freed_memory_kept

def allocate():
    done = [torch.ones(1 << 18) for _ in range(4)]
    barrier.wait()

def num_heaps():
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return len(re.findall("<heap nr", open(file.name).read()))

before, barrier = num_heaps(), threading.Barrier(5)
if sys.argv[1] == "within":
    memory.CORES_PER_HEAP = 1 << 20
    with freed_memory_kept():
        pass
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
barrier.wait()
for thread in threads:
    thread.join()
print(num_heaps() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_threads_share_a_heap() -> None:
    def new_heaps(how: str, **given: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", HEAPS, how],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env={name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | given,
        )
        return int(done.stdout)

    assert new_heaps("outside") >= 3
    assert new_heaps("within") == 0
    assert new_heaps("within", MALLOC_ARENA_MAX="8") >= 3  # whoever sets it is obeyed
