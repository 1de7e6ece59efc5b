"""One Ray for all tests that need it, and a look at what they leave behind."""

from __future__ import annotations

import time

import psutil
import pytest


@pytest.fixture(scope="session")
def local_ray():
    """A Ray on this machine; backends use it and leave it running."""
    import hqde.backends.on_ray  # noqa: F401, I001 - sets what Ray reads at import
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def on_ray(local_ray):
    """Ray, with a check that no actor outlives the test and no object stays in the store."""
    yield local_ray
    assert wait_until(lambda: not busy_processes()), f"left behind: {busy_processes()}"


def busy_processes():
    """Ray's processes of this session that run a task or an actor."""
    titles = []
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        name = title.strip().removeprefix("ray::")
        if name != title.strip() and not name.startswith(("IDLE", "DashboardAgent", "RuntimeEnvAgent")):
            titles.append(name)
    return titles


def wait_until(holds, timeout_s=10.0):
    """Whether something comes true in time."""
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
