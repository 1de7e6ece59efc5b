"""Machines that were never there, and no thread left behind."""

from __future__ import annotations

import threading

import pytest

from hqde.monitoring import GpuMetrics, SystemMetrics


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = {thread.ident for thread in threading.enumerate()}
    yield
    left = [t.name for t in threading.enumerate() if t.ident not in before and t.name.startswith("hqde")]
    assert left == []


class Scripted:
    """A source of samples from a list; the last one again and again, or an error in its place."""

    def __init__(self, *steps):
        self.steps, self.closed = list(steps), 0

    def sample(self):
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step

    def close(self):
        self.closed += 1


@pytest.fixture
def scripted():
    """``scripted(sample, error, …)``."""
    return Scripted


@pytest.fixture
def sample():
    """``sample(cpu_percent=…)``."""

    def make(timestamp=0.0, **figures):
        return SystemMetrics(timestamp=timestamp, monotonic_s=timestamp, **figures)

    return make


@pytest.fixture
def gpu():
    """``gpu(utilization_percent=…)``."""

    def make(index=0, *, used=2**30, total=2**33, utilization=50.0):
        return GpuMetrics(index, "test", used, total, utilization)

    return make
