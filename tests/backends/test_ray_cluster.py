"""Three nodes on one machine: what the loss of one does, and what copies elsewhere are good for.

A worker per node, so that no node can go unnoticed.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from hqde.backends import LocalBackend, RaySettings
from hqde.data import Split
from hqde.errors import ConfigError, QuorumError


def three_workers(runs, **changes):
    return replace(runs.experiment(), num_workers=3, **changes)


pytestmark = pytest.mark.ray


def machines_seen(backend, count):
    """Names of other machines that a look came in from, once there are so many."""
    found, until = {}, time.monotonic() + 60
    while len(found) < count and time.monotonic() < until:
        found |= backend.machines()
        time.sleep(0.1)
    assert all(sample.memory_used_gb > 0 and sample.processes for sample in found.values())
    return set(found)


def test_a_node_that_goes_between_two_rounds_takes_nothing_along(three_nodes, runs):
    from hqde.backends.on_ray import RayBackend
    from hqde.backends.on_ray.cluster import alive_nodes

    seen = []

    def remove(record):
        if record.round == 1:
            seen.append(machines_seen(backend, 2))
            three_nodes.remove_node(three_nodes.others[0], allow_graceful=False)
            while len(alive_nodes()) > 2:  # the cluster takes some seconds to notice
                time.sleep(0.1)
            backend.machines()  # forgets who is gone
            seen.append(machines_seen(backend, 1))

    backend = RayBackend(RaySettings(plan="sharded"), threads=1)
    result, recorder = runs.run(backend, three_workers(runs), on_record=remove)
    runs.assert_same_weights(result, runs.run(LocalBackend(), three_workers(runs))[0])
    assert any("went with its node" in event.reason for event in recorder.told("repaired"))
    assert result.state.totals.failures == 0
    before, after = seen
    assert after < before
    assert backend.machines() == {}  # it is closed


@pytest.mark.long
def test_a_node_that_goes_during_a_round_takes_nothing_along(three_nodes, runs):
    from hqde.backends.on_ray import RayBackend, WorkerActor

    class TakesItsTime(WorkerActor):
        def _train(self, worker, order, bounds):
            if order.round_index == 2:
                time.sleep(2)
            return super()._train(worker, order, bounds)

    def remove_soon(record):
        if record.round == 1:
            gone = three_nodes.others[1]
            threading.Timer(1.0, lambda: three_nodes.remove_node(gone, allow_graceful=False)).start()

    backend = RayBackend(threads=1, actor_class=TakesItsTime)
    result, recorder = runs.run(backend, three_workers(runs), on_record=remove_soon)
    runs.assert_same_weights(result, runs.run(LocalBackend(), three_workers(runs))[0])
    assert recorder.told("restarted")


@pytest.mark.long
def test_the_store_survives_a_lost_node_and_a_damaged_copy(three_nodes, ray_module):
    from hqde.backends.on_ray.weight_store import LostError, WeightStore

    with pytest.raises(ConfigError, match="replication_factor=4 needs as many nodes, the cluster has 3"):
        WeightStore(4)
    store = WeightStore(2)
    values = {f"cell {i}": np.arange(i, i + 1000, dtype=np.float32) for i in range(6)}
    for name, value in values.items():
        store.keep(name, 1, value)
    store.settle()
    assert all(len(set(cell.nodes)) == 2 for cell in store.cells.values())

    damaged, node = "cell 0", store.cells["cell 0"].nodes[0]
    ray_module.get(store.shelves[node].damage.remote(damaged))
    assert np.array_equal(store.read(damaged), values[damaged])
    assert any("cell 0" in sentence for sentence in store.heal())
    assert len(store.cells[damaged].nodes) == 2

    gone = three_nodes.others[0]
    held = [name for name, cell in store.cells.items() if gone.node_id in cell.nodes]
    assert held
    three_nodes.remove_node(gone, allow_graceful=False)
    while store.shelves and not store.needs_healing():
        time.sleep(0.1)
    healed = store.heal()
    assert len([sentence for sentence in healed if "went with its node" in sentence]) == len(held)
    for name, value in values.items():
        cell = store.cells[name]
        assert len(set(cell.nodes)) == 2
        assert gone.node_id not in cell.nodes
        for node in cell.nodes:
            assert np.array_equal(ray_module.get(store.shelves[node].get.remote(name, 1)), value)

    store.keep("cell 1", 2, values["cell 2"])
    assert np.array_equal(store.read("cell 1"), values["cell 2"])
    for node in store.cells["cell 3"].nodes:
        ray_module.get(store.shelves[node].damage.remote("cell 3"))
    with pytest.raises(LostError, match="no sound copy of 'cell 3'"):
        store.read("cell 3")
    store.close()


@pytest.mark.long
def test_workers_join_and_leave_between_rounds(three_nodes, ray_module, runs):
    from hqde.backends.on_ray import RayBackend

    for node in three_nodes.others:
        three_nodes.remove_node(node)
    joined = []

    def change(record):
        if record.round == 1:
            joined.append(three_nodes.add_node(num_cpus=2))
        if record.round == 2:
            three_nodes.remove_node(joined[0], allow_graceful=False)
            while len([node for node in ray_module.nodes() if node["Alive"]]) > 1:
                time.sleep(0.1)

    experiment = replace(runs.experiment(), num_workers=3, partitioner=Split())
    settings = RaySettings(min_workers=1, replication_factor=1)
    result, recorder = runs.run(RayBackend(settings, threads=1), experiment, on_record=change)
    present = [[worker.worker for worker in record.workers] for record in recorder.records]
    assert [len(ids) for ids in present] == [2, 3, 2]
    rows = len(experiment.splits.train)
    for record in recorder.records:  # a last batch of a single row is left out
        assert rows - len(record.workers) <= sum(worker.samples for worker in record.workers) <= rows
    assert result.state.totals.failures == 0


@pytest.mark.long
def test_a_run_whose_cluster_shrinks_too_far_ends_with_the_numbers(three_nodes, ray_module, runs):
    from hqde.backends.on_ray import RayBackend

    def shrink(record):
        for node in three_nodes.others:
            three_nodes.remove_node(node, allow_graceful=False)
        while len([node for node in ray_module.nodes() if node["Alive"]]) > 1:
            time.sleep(0.1)

    backend = RayBackend(RaySettings(min_workers=3), threads=1)
    with pytest.raises(QuorumError, match=r"3 workers of 1 CPUs each do not fit on 1 node\(s\) with 2 CPUs"):
        runs.run(backend, three_workers(runs), on_record=shrink)
