"""The thread: what it keeps, that it ends, and that nothing gets out of it."""

from __future__ import annotations

import logging
import threading
import time
import tracemalloc

from hqde.monitoring import Probes, Sampler


def wait_until(condition, limit_s=10.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_it_samples_at_its_interval_and_ends(scripted, sample):
    source = scripted(sample())
    sampler = Sampler(source, interval_s=0.01)
    sampler.start()
    sampler.start()
    assert sampler.is_running
    wait_until(lambda: sampler.num_samples >= 5)
    sampler.stop()
    sampler.stop()
    assert not sampler.is_running
    assert source.closed == 1


def test_the_ring_forgets_the_oldest(scripted, sample):
    sampler = Sampler(scripted(*(sample(float(i)) for i in range(6))), capacity=3)
    for _ in range(6):
        sampler.take()
    assert [kept.timestamp for kept in sampler.samples()] == [3.0, 4.0, 5.0]


def test_memory_stays_the_same_over_ten_thousand_samples():
    class Source:
        def __init__(self):
            self.probes, self.model = Probes(), None

        def sample(self):
            from dataclasses import replace

            self.model = self.model or self.probes.sample()
            return replace(self.model, timestamp=time.time())

        def close(self):
            self.probes.close()

    sampler = Sampler(Source(), capacity=500)
    for _ in range(1000):
        sampler.take()
    tracemalloc.start()
    try:
        for _ in range(1000):
            sampler.take()
        early, _ = tracemalloc.get_traced_memory()
        for _ in range(8000):
            sampler.take()
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sampler.num_samples == 10_000
    assert late <= 1.05 * early


def test_failures_are_logged_once_and_do_not_get_out(scripted, sample, caplog):
    sampler = Sampler(scripted(sample(), RuntimeError("no"), RuntimeError("no"), sample()), interval_s=0.01)
    with caplog.at_level(logging.WARNING, "hqde"):
        sampler.start()
        wait_until(lambda: sampler.num_samples >= 2)
        sampler.stop()
    assert len(caplog.records) == 1


def test_it_gives_up_after_three_failures_in_a_row(scripted, caplog):
    sampler = Sampler(scripted(ZeroDivisionError("always")), interval_s=0.01)
    with caplog.at_level(logging.WARNING, "hqde"):
        sampler.start()
        wait_until(lambda: not sampler.is_running)
        sampler.stop()
    assert "it stops" in caplog.text


def test_a_listener_that_raises_does_not_reach_the_caller(scripted, sample):
    def refuse(_):
        raise ValueError("mine")

    sampler = Sampler(scripted(sample()), interval_s=60.0, on_sample=refuse)
    sampler.start()
    sampler.stop()


def test_a_probe_that_hangs_is_left_behind(scripted, sample, caplog):
    release = threading.Event()

    class Hanging(scripted):
        calls = 0

        def sample(self):
            self.calls += 1
            if self.calls > 1:
                release.wait(10)
            return sample()

    sampler = Sampler(Hanging(sample()), interval_s=0.001)
    sampler.start()
    wait_until(lambda: sampler._source.calls > 1)
    thread = sampler._thread
    sampler.stop(timeout_s=0.05)
    assert "left behind" in caplog.text
    release.set()
    thread.join(5)
    assert not thread.is_alive()
