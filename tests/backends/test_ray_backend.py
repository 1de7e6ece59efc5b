"""What a run on Ray costs and leaves, and what it refuses."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import psutil
import pytest
import torch

from hqde.aggregation import (
    AggregationPolicy,
    Momentum,
    NormBound,
    Reliability,
    make_attack,
    make_rule,
    make_server_optimizer,
)
from hqde.backends import LocalBackend, RaySettings
from hqde.balance import Adaptive
from hqde.checkpoints import CheckpointStore
from hqde.data import Split
from hqde.drills import BadWorkers
from hqde.errors import ConfigError, PreconditionError
from hqde.rounds import Engine
from hqde.testing import small_experiment
from hqde.topology import Elastic, Topology

pytestmark = pytest.mark.ray


def wide_experiment(runs, *, num_workers=3, **changes):
    """A model of 3.4 blocks, so that shards are really cut."""
    options = {"hidden": [4000, 12], "input_shape": [6], "num_outputs": 2, "norm": "batch"}
    base = runs.experiment()
    return replace(
        base, model=replace(base.model, options=options), num_workers=num_workers, epochs=2, **changes
    )


@pytest.mark.parametrize(
    ("plan", "server"),
    [
        pytest.param("flat", "fedavg", marks=pytest.mark.long),
        ("tree", "nesterov"),
        ("sharded", "fedadam"),
    ],
)
def test_every_plan_gives_the_bits_of_the_local_backend(plan, server, on_ray, runs):
    from hqde.backends.on_ray import RayBackend

    workers = 5 if plan == "tree" else 3  # a tree of two levels
    experiment = wide_experiment(
        runs, num_workers=workers, topology=Topology(groups=1), server=make_server_optimizer(server)
    )
    backend = RayBackend(RaySettings(plan=plan, fan_in=4, num_shards=3), threads=1)
    result, _ = runs.run(backend, experiment)
    expected, _ = runs.run(LocalBackend(), experiment)
    runs.assert_same_weights(result, expected)
    for ours, theirs in zip(result.state.server, expected.state.server, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("rule", "policy"),
    [
        (
            make_rule("geometric_median", num_byzantine=1, mixing=["nnm"]),
            AggregationPolicy(norm_bound=NormBound(), reliability=Reliability(), use="weigh"),
        ),
        pytest.param(make_rule("trimmed_mean", num_byzantine=1), AggregationPolicy(), marks=pytest.mark.long),
    ],
    ids=["decided on inner products", "by columns"],
)
def test_robust_rules_under_attack_are_sharded_to_the_same_bits(rule, policy, on_ray, runs):
    from hqde.backends.on_ray import RayBackend

    def attacked(inner):
        return BadWorkers(inner, make_attack("alie"), frozenset({2}), num_classes=2)

    experiment = wide_experiment(
        runs, topology=Topology(groups=1), rule=rule, policy=policy, server=Momentum(0.7, 0.9)
    )
    sharded = RayBackend(RaySettings(plan="sharded", num_shards=3), threads=1)
    result, recorder = runs.run(attacked(sharded), experiment)
    expected, wanted = runs.run(attacked(LocalBackend()), experiment)
    runs.assert_same_weights(result, expected)
    assert result.state.reliability.keys() == expected.state.reliability.keys()
    for ours, theirs in zip(recorder.records, wanted.records, strict=True):
        told = [[(w.status, w.weight, w.reliability, w.outliers) for w in r.workers] for r in (ours, theirs)]
        assert told[0] == told[1]
    with pytest.raises(PreconditionError, match="two levels of 1/3 tolerate 1/9"):
        runs.run(RayBackend(RaySettings(plan="tree"), threads=1), experiment)


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(Topology.independent(), marks=pytest.mark.long),
        pytest.param(Topology(groups=2, global_every=1), marks=pytest.mark.long),
        pytest.param(Topology(branch_at=0.5, trunk_workers=1), marks=pytest.mark.long),
        Topology(groups=2, elastic=Elastic(group_pull=0.2, global_pull_end=0.5)),
    ],
    ids=["independent", "global", "branching", "elastic"],
)
def test_every_topology_gives_the_bits_of_the_local_backend(topology, on_ray, runs):
    from hqde.backends.on_ray import RayBackend

    experiment = replace(small_experiment(num_workers=4), topology=topology, epochs=2, buffers="local")
    result, _ = runs.run(RayBackend(threads=1), experiment)
    expected, _ = runs.run(LocalBackend(), experiment)
    runs.assert_same_weights(result, expected)


@pytest.mark.long
def test_a_run_goes_on_from_its_checkpoint_on_another_ray(on_ray, runs, tmp_path, undisturbed):
    from hqde.backends.on_ray import RayBackend

    store = CheckpointStore(tmp_path)

    def interrupt(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(RayBackend(threads=1), on_record=interrupt, store=store)
    on_ray.shutdown()
    on_ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    result = Engine(runs.experiment(), RayBackend(threads=1), store=store).run(resume=True)
    runs.assert_same_weights(result, undisturbed)
    again = Engine(runs.experiment(), LocalBackend(), store=store).run(resume=True)
    runs.assert_same_weights(again, undisturbed)


@pytest.mark.long
def test_after_many_rounds_memory_and_the_store_are_as_after_a_few(on_ray, runs):
    from hqde.backends.on_ray import RayBackend

    pids, resident, held = set(), {}, {}

    def measure(record):
        if record.round not in (20, 100):
            return
        gc.collect()
        processes = [psutil.Process(), *(p for p in psutil.Process().children(recursive=True) if is_actor(p))]
        # Without the store: its pages are shared, and count for whoever has read them once.
        memory = [process.memory_info() for process in processes]
        resident[record.round] = [used.rss - used.shared for used in memory]
        held[record.round] = settled(lambda: stored_bytes(on_ray))
        pids.update(process.pid for process in processes)

    experiment = replace(
        wide_experiment(runs, topology=Topology(groups=1)), num_workers=2, epochs=100, evaluate_every=50
    )
    runs.run(RayBackend(RaySettings(plan="sharded"), threads=1), experiment, on_record=measure)
    assert len(pids) == 3
    for early, late in zip(resident[20], resident[100], strict=True):
        assert late <= 1.05 * early
    assert held[100] <= 1.05 * held[20]
    assert settled(lambda: stored_bytes(on_ray)) == 0


def stored_bytes(ray):
    """Bytes in the object store."""
    return ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]


def settled(value):
    """A figure once it has stood still for two seconds: Ray frees objects in batches."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 2:
        time.sleep(0.1)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    return last


def is_actor(process):
    return " ".join(process.cmdline()).startswith("ray::WorkerActor")


@pytest.mark.long
def test_adaptive_shards_make_a_slow_worker_finish_with_the_others(on_ray, runs):
    from hqde.backends.on_ray import RayBackend, WorkerActor

    class OneIsSlow(WorkerActor):
        """Every sample takes 4 ms, and 12 ms on worker 0."""

        def _train(self, worker, order, bounds):
            began = time.perf_counter()
            update, *rest = super()._train(worker, order, bounds)
            each = 0.012 if order.worker_id == 0 else 0.004
            time.sleep(max(0.0, each * update.num_samples - (time.perf_counter() - began)))
            return replace(update, seconds=each * update.num_samples, node_load=0.0), *rest

    base = replace(
        small_experiment(num_workers=2), topology=Topology(groups=1), partitioner=Split(), epochs=4
    )
    times = {}
    for balancer in (Adaptive(), base.balancer):
        _, recorder = runs.run(RayBackend(threads=1, actor_class=OneIsSlow), replace(base, balancer=balancer))
        last = recorder.records[-1].workers
        times[balancer.name] = max(worker.samples * (3 if worker.worker == 0 else 1) for worker in last)
    rows = len(base.splits.train)
    ideal = rows / (1 + 1 / 3)
    assert times["adaptive"] <= 1.15 * ideal
    assert times["round_robin"] >= 1.9 * ideal


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_gpus": 1.0}, "2 workers of 1 GPUs each do not fit on 0 GPUs: 0 would; set ray.num_gpus = 0"),
        ({"num_cpus": 2.0}, r"2 workers of 2 CPUs each do not fit on 1 node\(s\) with 2 CPUs: 1 would"),
        ({"replication_factor": 2}, "replication_factor=2 needs as many nodes, the cluster has 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_created(settings, sentence, on_ray, runs):
    from hqde.backends.on_ray import RayBackend

    with pytest.raises(ConfigError, match=sentence):
        runs.run(RayBackend(RaySettings(**settings), threads=1))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_gpus": 0.3}, "must be 1/k"),
        ({"num_cpus": 1.5}, "must be a whole number"),
        ({"num_cpus": -1.0}, "must not be negative"),
        ({"plan": "star"}, "must be one of auto, flat, tree, sharded"),
        ({"fan_in": 5}, "must be 4, 8 or 16"),
        ({"link_gbit": 0.0}, "must be above 0"),
        ({"replication_factor": -1}, "must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        RaySettings(**settings)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("127.0.0.1:1", "nothing answers at '127.0.0.1:1'"), ("nowhere", "is no address of a Ray cluster")],
)
def test_a_cluster_that_does_not_answer_is_named(address, sentence, ray_module, runs):
    from hqde.backends.on_ray import RayBackend

    ray_module.shutdown()
    with pytest.raises(ConfigError, match=sentence):
        runs.run(RayBackend(RaySettings(address=address)))
    assert not ray_module.is_initialized()


def test_a_model_that_the_actors_cannot_import_is_refused_in_one_sentence(
    on_ray, runs, tmp_path, monkeypatch
):
    from hqde.backends.on_ray import RayBackend
    from hqde.models import model_spec

    (tmp_path / "only_here.py").write_text(
        "import os\n\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self):\n"
        f"        assert os.getpid() == {psutil.Process().pid}, 'no such file over there'\n"
        "        super().__init__(6, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    model = model_spec("only_here:Net", input_shape=(6,), num_outputs=2)
    with pytest.raises(ConfigError, match="on Ray, worker 0 cannot be built: model 'only_here:Net'"):
        runs.run(RayBackend(threads=1), runs.experiment(model=model))


def test_predictions_are_those_of_one_process(on_ray, runs):
    from hqde.backends.on_ray import RayBackend

    experiment = runs.experiment()
    result, _ = runs.run(LocalBackend(), experiment)
    backend = RayBackend(threads=1)
    backend.start(experiment.worker_specs(), experiment.splits.train)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = experiment.splits.train
        alone = result.ensemble.predict_members(rows)
        assert torch.equal(backend.predict_members(result.ensemble, rows), alone)
        on_ray.kill(backend._crew.workers[1].actor)  # this process stands in for it
        assert torch.equal(backend.predict_members(result.ensemble, rows), alone)
    finally:
        torch.set_num_threads(threads)
        backend.close()
