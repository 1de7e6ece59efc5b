"""One thread that looks at the machine now and then."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hqde.monitoring.system_metrics import SystemMetrics

logger = logging.getLogger("hqde")

MOST_FAILURES = 3


class Source(Protocol):
    """What a sampler asks: ``Probes``, or something like it."""

    def sample(self) -> SystemMetrics:
        """Look once."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class Sampler:
    """Samples at an interval, in a thread of its own, and keeps the newest in a ring.

    Nothing that goes wrong in it reaches the caller: it is logged, once, and after three failures in a
    row the sampler stops.

    Args:
        source: what to ask.
        interval_s: seconds between two samples.
        capacity: samples kept; older ones are forgotten, so the memory is fixed.
        on_sample: told of each sample, in the sampler's thread (in the caller's, for the first and the last).

    Example:
        >>> from hqde.monitoring import Probes
        >>> sampler = Sampler(Probes(), interval_s=60.0)
        >>> sampler.start()
        >>> sampler.stop()
        >>> len(sampler.samples())  # one at the start, one at the end
        2
    """

    def __init__(
        self,
        source: Source,
        *,
        interval_s: float = 1.0,
        capacity: int = 3600,
        on_sample: Callable[[SystemMetrics], None] | None = None,
    ) -> None:
        self._source = source
        self._interval_s = interval_s
        self._on_sample = on_sample
        self._ring: deque[SystemMetrics] = deque(maxlen=capacity)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = 0
        self.num_samples = 0

    @property
    def is_running(self) -> bool:
        """Whether samples are still being taken."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Take the first sample and go on in the background; a second call does nothing."""
        if self._thread is not None:
            return
        self._stop.clear()
        self._failures = 0
        self.take()
        self._thread = threading.Thread(target=self._run, name="hqde-sampler", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread, and take a last sample; may be called twice."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():  # a probe hangs, on a network disk for example; the thread is a daemon
            logger.warning("the sampler did not end within %g s and is left behind", timeout_s)
        else:
            self.take()
            self._source.close()
        self._thread = None

    def samples(self) -> tuple[SystemMetrics, ...]:
        """What is in the ring, oldest first."""
        return tuple(self._ring)

    def take(self) -> SystemMetrics | None:
        """Take a sample now; ``None`` when that failed."""
        try:
            sample = self._source.sample()
            self._ring.append(sample)
            self.num_samples += 1
            if self._on_sample is not None:
                self._on_sample(sample)
        except Exception as error:  # noqa: BLE001 - whatever it is, training must not stop for it
            self._failures += 1
            if self._failures == 1:
                logger.warning("monitoring: a sample failed (%s: %s)", type(error).__name__, error)
            return None
        self._failures = 0
        return sample

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.take()
            if self._failures >= MOST_FAILURES:
                logger.warning("monitoring: %d samples failed in a row; it stops", self._failures)
                return
