"""How many cores there are for this process, and how workers share them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from hqde.errors import ConfigError


@dataclass(frozen=True)
class Seating:
    """How the workers of one process share its cores.

    Attributes:
        lanes: workers that train side by side.
        threads: torch threads of each; 0 leaves PyTorch's choice.
    """

    lanes: int
    threads: int


def seat_workers(num_workers: int, *, lanes: int = 0, threads: int = 0, cores: int | None = None) -> Seating:
    """Lanes and threads for so many workers.

    The threads of a worker depend on the number of workers and of cores, and never on the number of lanes:
    bits depend on threads, and must not on lanes.

    Args:
        num_workers: at least 1.
        lanes: workers side by side; 0 takes as many as there are cores for, or workers.
        threads: torch threads of each; 0 shares the cores out, but takes no more than PyTorch may use.
        cores: usable ones; by default those of this process.

    Raises:
        ConfigError: a negative number.

    Example:
        >>> seat_workers(4, cores=2), seat_workers(1, cores=2), seat_workers(4, threads=2, cores=8)
        (Seating(lanes=2, threads=1), Seating(lanes=1, threads=0), Seating(lanes=4, threads=2))
    """
    for name, value in (("lanes", lanes), ("threads", threads)):
        if value < 0:
            raise ConfigError(f"{name} must not be negative, got {value}")
    cores = usable_cores() if cores is None else cores
    if num_workers > 1 and not threads:
        threads = max(1, min(torch.get_num_threads(), cores // num_workers))
    most = lanes or max(1, cores // max(1, threads))
    return Seating(min(most, num_workers), threads)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it is bound to, and no more than its container may spend.

    Args:
        root: where ``sys`` is.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return bound if quota is None else max(1, min(bound, int(quota)))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let this thread's tensor operations use so many threads of PyTorch's; 0 changes nothing.

    The number belongs to the thread that sets it, and to those that start later.
    """
    before = torch.get_num_threads()
    if threads in (0, before):
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the container around this process may spend; ``None`` without a limit."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = root / "sys/fs/cgroup/cpu"
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
