"""GPUs through NVML (extra ``gpu``)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hqde.monitoring.system_metrics import GpuMetrics

logger = logging.getLogger("hqde")

DRIVER = Path("/proc/driver/nvidia/version")


class GpuProbe:
    """Reads every NVIDIA GPU of the machine; none where there is no driver.

    A driver without ``nvidia-ml-py`` is worth one warning; no driver is none.

    Args:
        library: ``pynvml``, or something like it; left out, imported when there is a driver.
    """

    def __init__(self, library: Any = None) -> None:
        self._nvml = library if library is not None else _library()
        self._devices: list[tuple[int, str, Any]] = []
        self._refused: set[str] = set()
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlInit()
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                name = self._nvml.nvmlDeviceGetName(handle)
                self._devices.append((index, name.decode() if isinstance(name, bytes) else str(name), handle))
        except self._nvml.NVMLError as error:
            logger.warning("cannot read the GPUs (%s): their figures stay empty", error)

    def read(self) -> tuple[GpuMetrics, ...]:
        """One look at each device."""
        return tuple(self._device(*device) for device in self._devices)

    def close(self) -> None:
        """Let go of the driver; may be called twice."""
        if self._nvml is not None:
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                logger.debug("NVML: %s", error)
            self._nvml, self._devices = None, []

    def _device(self, index: int, name: str, handle: Any) -> GpuMetrics:
        memory = self._ask("memory", self._nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask("utilisation", self._nvml.nvmlDeviceGetUtilizationRates, handle)
        return GpuMetrics(
            index=index,
            name=name,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            utilization_percent=None if rates is None else float(rates.gpu),
        )

    def _ask(self, what: str, question: Any, handle: Any) -> Any:
        try:
            return question(handle)
        except self._nvml.NVMLError as error:
            if what not in self._refused:
                self._refused.add(what)
                logger.warning("cannot read a GPU's %s (%s): it stays empty", what, error)
            return None


def _library() -> Any:
    if not DRIVER.exists():
        return None
    try:
        import pynvml
    except ImportError:
        logger.warning("there are GPUs, but no figures of them: pip install 'hqde[gpu]'")
        return None
    return pynvml
