"""What goes wrong on a real Ray, and that the weights do not show it."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch

from hqde.backends import LocalBackend, RaySettings
from hqde.errors import WorkerError
from hqde.rounds import FaultPolicy
from hqde.testing import Fault, FaultyBackend

pytestmark = pytest.mark.ray

POLICY = FaultPolicy(patience=3.0)


RECOVERED = ["killed_before", "killed_during", "killed_after", "raises", "corrupted", "hangs", "slow"]


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        *((kind, "flat") for kind in RECOVERED),
        pytest.param("killed_after", "sharded", marks=pytest.mark.long),
        pytest.param("corrupted", "sharded", marks=pytest.mark.long),
    ],
)
def test_after_any_fault_the_weights_are_those_of_an_undisturbed_run(
    kind, plan, on_ray, tmp_path, runs, undisturbed
):
    from hqde.backends.on_ray import RayBackend
    from hqde.testing.ray_faults import ActorFault, faulty_actor, injected

    actor = faulty_actor([ActorFault(1, 2, kind)], tmp_path)
    backend = RayBackend(RaySettings(plan=plan), threads=1, actor_class=actor)
    result, recorder = runs.run(backend, runs.experiment(faults=POLICY))
    assert injected(tmp_path) == Counter({kind: 1})
    runs.assert_same_weights(result, undisturbed)
    assert result.state.totals.failures == 0
    if kind not in ("corrupted", "slow", "killed_after"):
        [event] = recorder.told("restarted")
        assert (event.worker_id, event.round_index) == (1, 2)
        assert result.state.totals.restarts == 1


def test_a_nan_update_is_rejected_and_the_others_go_on(on_ray, tmp_path, runs):
    from hqde.backends.on_ray import RayBackend
    from hqde.testing.ray_faults import ActorFault, faulty_actor

    actor = faulty_actor([ActorFault(1, 2, "nan")], tmp_path)
    result, recorder = runs.run(RayBackend(threads=1, actor_class=actor), runs.experiment())
    expected, _ = runs.run(FaultyBackend(LocalBackend(), (Fault(1, 2, "nan_delta"),)), runs.experiment())
    [event] = recorder.told("rejected")
    assert event.worker_id == 1
    assert "1 of" in event.reason
    runs.assert_same_weights(result, expected)


def test_a_worker_that_fails_every_time_is_excluded_with_the_reason(on_ray, tmp_path, runs):
    from hqde.backends.on_ray import RayBackend, WorkerActor

    class AlwaysFails(WorkerActor):
        def _train(self, worker, order, bounds):
            if order.worker_id == 1 and order.round_index >= 2:
                raise OSError("disk on fire")
            return super()._train(worker, order, bounds)

    policy = FaultPolicy(max_restarts=2)
    result, recorder = runs.run(
        RayBackend(threads=1, actor_class=AlwaysFails), runs.experiment(faults=policy)
    )
    assert len(recorder.told("restarted")) == 2
    [event] = recorder.told("excluded")
    assert (event.worker_id, event.round_index) == (1, 2)
    assert event.reason == "OSError: disk on fire"
    assert result.state.excluded == {1}
    assert result.state.totals.excluded == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes"),
    ],
    ids=["CUDA", "CPU"],
)
def test_out_of_memory_means_fewer_workers_at_a_time(on_ray, tmp_path, runs, undisturbed, error):
    from hqde.backends.on_ray import RayBackend, WorkerActor

    class RunsOutOnce(WorkerActor):
        def _train(self, worker, order, bounds):
            if order.worker_id == 0 and order.round_index == 1 and order.attempt == 0:
                raise error
            return super()._train(worker, order, bounds)

    result, recorder = runs.run(RayBackend(threads=1, actor_class=RunsOutOnce), runs.experiment())
    [event] = recorder.told("restarted")
    assert "out of memory" in event.reason
    assert "1 worker(s) at a time" in event.reason
    runs.assert_same_weights(result, undisturbed)


def test_when_all_workers_fail_the_run_ends_with_the_reason(on_ray, runs):
    from hqde.backends.on_ray import RayBackend, WorkerActor

    class NeverWorks(WorkerActor):
        def _train(self, worker, order, bounds):
            raise OSError("disk on fire")

    began = time.perf_counter()
    with pytest.raises(WorkerError, match="all 2 workers failed in round 1: OSError: disk on fire"):
        runs.run(
            RayBackend(threads=1, actor_class=NeverWorks), runs.experiment(faults=FaultPolicy(max_restarts=1))
        )
    assert time.perf_counter() - began < 60
