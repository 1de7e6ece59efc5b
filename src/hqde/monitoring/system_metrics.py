"""One look at a machine, as plain frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class GpuMetrics:
    """One GPU. ``None`` where a figure cannot be read.

    Attributes:
        index: as NVML counts, whatever ``CUDA_VISIBLE_DEVICES`` says.
        name: of the product.
        memory_used_bytes, memory_total_bytes: of the whole device, all processes together.
        utilization_percent: share of the last moments in which a kernel ran, 0 to 100.
    """

    index: int
    name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization_percent: float | None


@dataclass(frozen=True, slots=True)
class ProcessMetrics:
    """One process of the run.

    Attributes:
        pid: its id.
        name: what it is called.
        cpu_percent: of one core since the sample before, so four busy threads give 400; ``None`` at first.
        rss_bytes: resident memory.
    """

    pid: int
    name: str
    cpu_percent: float | None
    rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class SystemMetrics:
    """One sample of a machine. What cannot be read is ``None``, never 0; a rate needs a sample before it.

    The first eleven fields are those HQDE always had. Their GB and MB are binary, as they always were; the
    fields after them have their true unit in their name.

    Attributes:
        timestamp: Unix time, in seconds.
        cpu_percent: share of all cores that was busy since the sample before, 0 to 100.
        memory_percent: memory in use, 0 to 100: of the machine, or of the container where that is fuller.
        memory_used_gb: of the machine, in GiB.
        disk_io_read_mb, disk_io_write_mb: all disks since monitoring began, in MiB.
        network_sent_mb, network_recv_mb: all interfaces, loopback too, since monitoring began, in MiB.
        gpu_memory_used_gb: all GPUs together, in GiB.
        gpu_utilization: mean over the GPUs, 0 to 100.
        load_average: processes that run or wait to, over the last minute.
        monotonic_s: a clock that nobody sets; only differences mean anything.
        memory_total_bytes, memory_available_bytes: of the machine.
        container_limit_bytes, container_used_bytes: of the tightest memory cgroup around this process,
            without cache that would be given back; ``None`` where there is no limit.
        disk_read_bytes_per_s, disk_write_bytes_per_s: since the sample before.
        network_sent_bytes_per_s, network_recv_bytes_per_s: since the sample before.
        disk_free_bytes, disk_total_bytes: of the file system that is watched.
        process_cpu_percent: this process and the run's others, of one core: four busy threads give 400.
        process_rss_bytes: resident memory of them all; pages that they share count more than once.
        processes: each of them, this one first.
        gpus: each device; empty without one.
    """

    timestamp: float
    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory_used_gb: float | None = None
    disk_io_read_mb: float | None = None
    disk_io_write_mb: float | None = None
    network_sent_mb: float | None = None
    network_recv_mb: float | None = None
    gpu_memory_used_gb: float | None = None
    gpu_utilization: float | None = None
    load_average: float | None = None
    monotonic_s: float = 0.0
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    container_limit_bytes: int | None = None
    container_used_bytes: int | None = None
    disk_read_bytes_per_s: float | None = None
    disk_write_bytes_per_s: float | None = None
    network_sent_bytes_per_s: float | None = None
    network_recv_bytes_per_s: float | None = None
    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None
    process_cpu_percent: float | None = None
    process_rss_bytes: int | None = None
    processes: tuple[ProcessMetrics, ...] = ()
    gpus: tuple[GpuMetrics, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, one line of ``resources.jsonl``.

        >>> SystemMetrics(timestamp=1.5, cpu_percent=20.0).to_dict()["cpu_percent"]
        20.0
        """
        return asdict(self)

    def numbers(self) -> dict[str, float]:
        """The figures that are there, by name, without single processes and GPUs.

        >>> SystemMetrics(timestamp=1.5, load_average=0.25).numbers()
        {'timestamp': 1.5, 'load_average': 0.25, 'monotonic_s': 0.0}
        """
        return {
            name: value for name in self.__slots__ if isinstance(value := getattr(self, name), int | float)
        }


def total_of(values: Sequence[float | None]) -> float | None:
    """The sum of what is known; ``None`` where nothing is.

    >>> total_of([1.0, None, 2.0]), total_of([None])
    (3.0, None)
    """
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; ``None`` where nothing is.

    >>> mean_of([1.0, None, 2.0]), mean_of([])
    (1.5, None)
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
