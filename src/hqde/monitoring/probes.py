"""Reading a machine: processors, memory, disks, network, GPUs, and the run's processes."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from hqde.monitoring.containers import container_memory
from hqde.monitoring.gpus import GpuProbe
from hqde.monitoring.system_metrics import GIB, MIB, ProcessMetrics, SystemMetrics, mean_of, total_of

logger = logging.getLogger("hqde")
T = TypeVar("T")

# Looking for child processes reads all of /proc, so it is done once in so many samples.
CHILDREN_EVERY = 10
UNREADABLE = (OSError, psutil.Error, AttributeError, NotImplementedError, RuntimeError, ValueError)


def peak_rss_bytes() -> int:
    """Most resident memory of this process so far; ``ru_maxrss`` is in KiB on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Probes:
    """Takes samples of this machine. What cannot be read is ``None``, with one warning for its source.

    Rates are taken between two samples of the same object. Not for two threads at once.

    Args:
        disk: a path on the file system whose free space is watched; it need not exist yet.
        children: also look at the processes that this one started, and at theirs: Ray's workers on this
            machine are among them.
        siblings: likewise at all processes of this one's parent: Ray's workers, for one of them.
        gpus: how GPUs are read.

    Example:
        >>> sample = Probes().sample()
        >>> sample.memory_used_gb > 0, sample.cpu_percent  # a rate needs two samples
        (True, None)
    """

    def __init__(
        self,
        *,
        disk: Path | str = ".",
        children: bool = False,
        siblings: bool = False,
        gpus: GpuProbe | None = None,
    ) -> None:
        self._disk = Path(disk)
        self._children, self._siblings = children, siblings
        self._gpus = gpus or GpuProbe()
        self._warned: set[str] = set()
        self._count = 0
        self._processes: dict[int, psutil.Process] = {}
        self._cpu: tuple[float, float] | None = None  # all time, idle time
        self._cpu_of: dict[int, tuple[float, float]] = {}  # pid: when, seconds
        self._first: dict[str, tuple[int, int]] = {}
        self._last: dict[str, tuple[float, int, int]] = {}

    def sample(self) -> SystemMetrics:
        """Look at everything once; takes about two milliseconds."""
        now, monotonic = time.time(), time.monotonic()
        memory = self._read("memory", psutil.virtual_memory)
        limit = self._read("the container's limit", container_memory)
        disk = self._read("disk traffic", _disk_bytes)
        network = self._read("network traffic", _network_bytes)
        space = self._read("disk space", lambda: psutil.disk_usage(str(_existing(self._disk))))
        disk_totals, disk_rates = self._flow("disk", disk, monotonic)
        net_totals, net_rates = self._flow("network", network, monotonic)
        processes = self._look_at_processes(monotonic)
        gpus = self._read("the GPUs", self._gpus.read) or ()
        used = total_of([gpu.memory_used_bytes for gpu in gpus])
        self._count += 1
        return SystemMetrics(
            timestamp=now,
            cpu_percent=self._cpu_percent(),
            memory_percent=_fullest(None if memory is None else float(memory.percent), limit),
            memory_used_gb=None if memory is None else (memory.total - memory.available) / GIB,
            disk_io_read_mb=disk_totals[0] / MIB if disk_totals else None,
            disk_io_write_mb=disk_totals[1] / MIB if disk_totals else None,
            network_sent_mb=net_totals[0] / MIB if net_totals else None,
            network_recv_mb=net_totals[1] / MIB if net_totals else None,
            gpu_memory_used_gb=None if used is None else used / GIB,
            gpu_utilization=mean_of([gpu.utilization_percent for gpu in gpus]),
            load_average=self._read("the load", lambda: psutil.getloadavg()[0]),
            monotonic_s=monotonic,
            memory_total_bytes=None if memory is None else memory.total,
            memory_available_bytes=None if memory is None else memory.available,
            container_limit_bytes=limit[0] if limit else None,
            container_used_bytes=limit[1] if limit else None,
            disk_read_bytes_per_s=disk_rates[0],
            disk_write_bytes_per_s=disk_rates[1],
            network_sent_bytes_per_s=net_rates[0],
            network_recv_bytes_per_s=net_rates[1],
            disk_free_bytes=None if space is None else space.free,
            disk_total_bytes=None if space is None else space.total,
            process_cpu_percent=total_of([process.cpu_percent for process in processes]),
            process_rss_bytes=_whole(total_of([process.rss_bytes for process in processes])),
            processes=processes,
            gpus=gpus,
        )

    def close(self) -> None:
        """Let go of the GPUs' driver; may be called twice."""
        self._gpus.close()

    def _read(self, what: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except UNREADABLE as error:
            if what not in self._warned:
                self._warned.add(what)
                logger.warning("cannot read %s (%s: %s): it stays empty", what, type(error).__name__, error)
            return None

    def _cpu_percent(self) -> float | None:
        times = self._read("processor times", psutil.cpu_times)
        if times is None:
            return None
        # Linux counts a guest's time in user time already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        before, self._cpu = self._cpu, (total, idle)
        if before is None or total <= before[0]:
            return None
        return min(100.0, max(0.0, 100.0 * (1.0 - (idle - before[1]) / (total - before[0]))))

    def _flow(
        self, name: str, counters: tuple[int, int] | None, now: float
    ) -> tuple[tuple[int, int] | None, tuple[float | None, float | None]]:
        """Bytes since the first sample, and per second since the last one: in, out (or read, written)."""
        if counters is None:
            return None, (None, None)
        first = self._first.setdefault(name, counters)
        before = self._last.get(name)
        self._last[name] = (now, *counters)
        totals = (counters[0] - first[0], counters[1] - first[1])
        if before is None or now <= before[0]:
            return totals, (None, None)
        seconds = now - before[0]
        rates = tuple(
            max(0.0, (here - there) / seconds) for here, there in zip(counters, before[1:], strict=True)
        )
        return totals, (rates[0], rates[1])

    def _look_at_processes(self, now: float) -> tuple[ProcessMetrics, ...]:
        if not self._processes or ((self._children or self._siblings) and self._count % CHILDREN_EVERY == 0):
            found = self._read("this run's processes", self._find_processes) or []
            # The old objects stay: they know when their process began, and that its id is not used again.
            self._processes = {process.pid: self._processes.get(process.pid, process) for process in found}
            self._cpu_of = {pid: seen for pid, seen in self._cpu_of.items() if pid in self._processes}
        looked = (self._look_at(process, now) for process in list(self._processes.values()))
        return tuple(metrics for metrics in looked if metrics is not None)

    def _find_processes(self) -> list[psutil.Process]:
        own = psutil.Process()
        root = own.parent() if self._siblings else own if self._children else None
        others = () if root is None else root.children(recursive=True)
        return [own, *(process for process in others if process.pid != own.pid)]

    def _look_at(self, process: psutil.Process, now: float) -> ProcessMetrics | None:
        try:
            with process.oneshot():
                times, memory, name = process.cpu_times(), process.memory_info(), process.name()
        except psutil.NoSuchProcess:  # it ended; nothing is wrong with that
            self._processes.pop(process.pid, None)
            return None
        except UNREADABLE:
            return ProcessMetrics(process.pid, "", None, None)
        seconds = times.user + times.system
        before = self._cpu_of.get(process.pid)
        self._cpu_of[process.pid] = (now, seconds)
        percent = None
        if before is not None and now > before[0]:
            percent = max(0.0, 100.0 * (seconds - before[1]) / (now - before[0]))
        return ProcessMetrics(process.pid, name, percent, memory.rss)


def _disk_bytes() -> tuple[int, int]:
    found = psutil.disk_io_counters()
    if found is None:
        raise OSError("this machine shows no disk")
    return found.read_bytes, found.write_bytes


def _network_bytes() -> tuple[int, int]:
    found = psutil.net_io_counters()
    if found is None:
        raise OSError("this machine shows no network interface")
    return found.bytes_sent, found.bytes_recv


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(here for here in (path, *path.parents) if here.exists())


def _fullest(machine: float | None, container: tuple[int, int] | None) -> float | None:
    inside = 100.0 * container[1] / container[0] if container and container[0] else None
    known = [value for value in (machine, inside) if value is not None]
    return max(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
