"""What a run took of its machine, added up from samples."""

from __future__ import annotations

from typing import Any

from hqde.monitoring import SystemMetrics

MIB, GIB = 2**20, 2**30


class Consumption:
    """Means, peaks and totals over the samples of a run; its memory does not grow.

    Example:
        >>> consumed = Consumption()
        >>> for second, cpu in enumerate([None, 20.0, 40.0]):
        ...     consumed.add(SystemMetrics(timestamp=second, monotonic_s=second, cpu_percent=cpu))
        >>> figures = consumed.to_dict(1.0)
        >>> figures["mean_cpu_percent"], figures["peak_rss_bytes"], figures["seconds"]
        (30.0, None, 2)
    """

    def __init__(self) -> None:
        self.num_samples = 0
        self._sums: dict[str, tuple[float, int]] = {}
        self._peaks: dict[str, float] = {}
        self._first: SystemMetrics | None = None
        self._last: SystemMetrics | None = None

    def add(self, sample: SystemMetrics) -> None:
        """One more sample."""
        self.num_samples += 1
        self._first = self._first or sample
        self._last = sample
        for name, value in sample.numbers().items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
            self._peaks[name] = max(self._peaks.get(name, value), value)

    def to_dict(self, interval_s: float) -> dict[str, Any]:
        """``resources`` of ``metrics.json``; ``None`` where nothing could be read.

        Args:
            interval_s: seconds between two samples.
        """
        first, last = self._first, self._last
        return {
            "samples": self.num_samples,
            "interval_s": interval_s,
            "seconds": last.monotonic_s - first.monotonic_s if first and last else 0.0,
            "mean_cpu_percent": self._mean("cpu_percent"),
            "mean_process_cpu_percent": self._mean("process_cpu_percent"),
            "peak_rss_bytes": self._peak("process_rss_bytes"),
            "peak_memory_percent": self._peak("memory_percent"),
            "disk_read_bytes": _bytes(self._newest("disk_io_read_mb")),
            "disk_write_bytes": _bytes(self._newest("disk_io_write_mb")),
            "network_sent_bytes": _bytes(self._newest("network_sent_mb")),
            "network_recv_bytes": _bytes(self._newest("network_recv_mb")),
            "mean_gpu_percent": self._mean("gpu_utilization"),
            "peak_gpu_memory_bytes": _bytes(self._peak("gpu_memory_used_gb"), GIB),
        }

    def _mean(self, name: str) -> float | None:
        total, count = self._sums.get(name, (0.0, 0))
        return total / count if count else None

    def _newest(self, name: str) -> float | None:
        value: float | None = getattr(self._last, name, None)
        return value

    def _peak(self, name: str) -> float | None:
        return self._peaks.get(name)


def _bytes(value: float | None, unit: int = MIB) -> int | None:
    return None if value is None else round(value * unit)
