"""One Ray for all tests that need it, and a look at what they leave behind."""

from __future__ import annotations

import time
from dataclasses import replace

import psutil
import pytest
import torch

from hqde.backends import LocalBackend
from hqde.rounds import Engine
from hqde.testing import small_experiment

QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


@pytest.fixture(scope="session")
def ray_module():
    """Ray, imported as the backend does; what is running at the end is shut down."""
    import hqde.backends.on_ray  # noqa: F401, I001 - sets what Ray reads at import
    import ray

    yield ray
    ray.shutdown()


@pytest.fixture
def on_ray(ray_module):
    """A Ray on this machine, which backends use and leave running, and nothing left on it afterwards."""
    if not ray_module.is_initialized():
        ray_module.init(address="local", num_cpus=2, include_dashboard=False, **QUIET)
    yield ray_module
    assert wait_until(lambda: not busy_processes()), f"left behind: {busy_processes()}"


@pytest.fixture
def three_nodes(ray_module):
    """A cluster of three nodes of two CPUs each, on this machine; the first is the driver's."""
    from ray.cluster_utils import Cluster

    ray_module.shutdown()
    notices_soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": notices_soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.others = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray_module.init(address=cluster.address, **QUIET)
    yield cluster
    left = wait_until(lambda: not busy_processes())
    ray_module.shutdown()
    cluster.shutdown()
    assert left


def busy_processes():
    """Ray's processes under this one that run a task or an actor."""
    titles = []
    for process in psutil.Process().children(recursive=True):
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


class Recorder:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.events, self.records, self.on_record = [], [], lambda record: None

    def on_start(self, plans, first_round):
        pass

    def on_step(self, worker_id, done, total):
        pass

    def on_round(self, record):
        self.records.append(record)
        self.on_record(record)

    def on_event(self, event):
        self.events.append(event)

    def told(self, kind):
        return [event for event in self.events if event.kind == kind]


class Runs:
    """Runs of one small experiment, of three rounds."""

    def experiment(self, **changes):
        return replace(small_experiment(num_workers=2), epochs=3, **changes)

    def run(self, backend, experiment=None, *, on_record=None, **options):
        recorder = Recorder()
        recorder.on_record = on_record or recorder.on_record
        result = Engine(experiment or self.experiment(), backend, listener=recorder, **options).run()
        return result, recorder

    def assert_same_weights(self, one, other):
        for left, right in zip(one.state.committed, other.state.committed, strict=True):
            assert torch.equal(left.vector, right.vector)
            assert torch.equal(left.integers, right.integers)


@pytest.fixture(scope="session")
def runs():
    return Runs()


@pytest.fixture(scope="session")
def undisturbed(runs):
    """The run on the local backend."""
    return runs.run(LocalBackend())[0]
