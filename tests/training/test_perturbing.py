"""Noise on a worker's way: of the size that is said, and none where none is asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hqde.backends import LocalBackend
from hqde.data import Iid, Split
from hqde.errors import ConfigError
from hqde.rounds import Engine
from hqde.rounds.entangling import entangled_perturbations
from hqde.testing import orders_of, small_experiment
from hqde.topology import Elastic, Topology
from hqde.training import Diversity, Recipe, Schedule, Worker, count_samples, epoch_batches

SGD = {"optimizer": "sgd", "nesterov": False, "clip_norm": 0.0, "weight_decay": 0.0}


def delta_of(desk, *, order=None, **recipe):
    """One round's delta, on all rows in one batch."""
    given = SGD | {"batch_size": 24, "momentum": 0.0, "learning_rate": 0.01} | recipe
    return desk.worker(**given).train_round(order or desk.order()).delta


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_heated_step_differs_by_noise_of_the_said_deviation(desk_of, blobs_of_many, momentum):
    desk = desk_of(blobs_of_many, options={"hidden": [400, 20]})
    cold = delta_of(desk, momentum=momentum)
    warm = delta_of(desk, momentum=momentum, temperature=3.0)
    cut = desk.worker().layout.num_parameters
    noise = (warm - cold)[:cut].double()
    assert len(noise) > 9000
    said = math.sqrt(2 * (1 - momentum) * 0.01 * 3.0 / 24)
    assert float(noise.std()) == pytest.approx(said, rel=0.03)
    assert abs(float(noise.mean())) < 4 * said / math.sqrt(len(noise))
    assert torch.equal(warm, delta_of(desk, momentum=momentum, temperature=3.0))


@pytest.fixture
def blobs_of_many():
    from hqde.data import TensorExamples

    draws = torch.Generator().manual_seed(5)
    return TensorExamples(torch.randn(24, 4, generator=draws), torch.arange(24) % 3)


def test_noise_fades_with_decoherence_and_waits_for_its_part_of_the_cycle(desk_of, blobs_of_many):
    desk = desk_of(blobs_of_many, options={"hidden": [400, 20]})
    late = desk.order(progress=(0.9, 1.0))
    cold = delta_of(desk, order=late)
    warm = delta_of(desk, order=late, temperature=1.0) - cold
    faded = delta_of(desk, order=late, temperature=1.0, decoherence=2.0) - cold
    torch.testing.assert_close(faded, warm * math.exp(-2.0 * 0.95 / 2), rtol=1e-2, atol=1e-5)
    early = desk.order(progress=(0.0, 0.1))
    waiting = delta_of(desk, order=early, temperature=1.0, heat_from=0.5)
    assert torch.equal(waiting, delta_of(desk, order=early))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": 1.0}, "plain SGD or heavy-ball momentum, not of adamw; set optimizer = 'sgd'"),
        ({"temperature": 1.0, "optimizer": "sgd"}, "not of sgd with nesterov; .* nesterov = false"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"decoherence": math.inf}, "decoherence must not be negative and be finite"),
        ({"heat_from": 1.0}, r"heat_from is a fraction of a cycle in \[0, 1\)"),
        ({"cycles": 0}, "cycles must be at least 1"),
        ({"cycles": 2, "schedule": "constant"}, "another schedule than 'cosine', got 2 with 'constant'"),
    ],
)
def test_a_recipe_that_makes_no_sampler_is_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Recipe(**settings)


def test_cycles_begin_anew_and_exclude_what_does_the_same():
    schedule = Schedule(warmup=0.05, cycles=4)
    assert [schedule.factor(p) for p in (0.25, 0.5, 0.75)] == [1.0, 1.0, 1.0]
    assert schedule.factor(0.0) == 0.0
    assert schedule.factor(1.0) == pytest.approx(0.0, abs=1e-12)
    assert schedule.factor(0.625) == pytest.approx(0.5)
    with pytest.raises(ConfigError, match=r"4 cycles and a restart where groups branch, at 0\.5"):
        Schedule(cycles=4, restart_at=0.5)
    with pytest.raises(ConfigError, match=r"does not end within the first of 4 cycles; use less than 0\.25"):
        Schedule(cycles=4, warmup=0.25)


# -- perturbations that cancel -----------------------------------------------------------------------------


def entangled(size=0.1, **changes):
    base = replace(
        small_experiment(num_workers=3),
        diversity=Diversity(
            learning_rate_spread=0.0, dropout_spread=0.0, entangled_noise=size, shared_init=True
        ),
        partitioner=Split(),
        recipe=Recipe(batch_size=16, learning_rate=1e-12, optimizer="sgd"),
    )
    return replace(base, **changes)


@pytest.mark.parametrize("partitioner", [Split(), Iid()])
def test_perturbations_move_workers_and_not_their_mean(partitioner):
    experiment = entangled(partitioner=partitioner, epochs=1)
    start = experiment.initial_weights(0)
    cut = Worker(experiment.worker_specs()[0], experiment.splits.train).layout.num_parameters
    found = entangled_perturbations(experiment, experiment.plan()[0], experiment.shards(1))
    assert sorted(found) == [0, 1, 2]
    moved = []
    for spec, order in zip(experiment.worker_specs(), orders_of(experiment), strict=True):
        given = replace(order, start=start, perturbation=found[order.worker_id])
        moved.append(Worker(spec, experiment.splits.train).train_round(given).delta[:cut])
    assert min(float(delta.norm()) for delta in moved) > 0.05 * float(start.vector[:cut].norm())
    result = Engine(experiment, LocalBackend()).run()
    gone = result.state.committed[0].vector[:cut] - start.vector[:cut]
    assert float(gone.norm()) < 1e-5 * float(moved[0].norm())


def test_perturbations_fade_to_nothing_and_need_somebody_to_cancel_with():
    experiment = entangled(epochs=4)
    sizes = [
        math.hypot(p.cosine, p.sine)
        for plan in experiment.plan()
        for p in [entangled_perturbations(experiment, plan, experiment.shards(plan.epoch))[0]]
    ]
    assert sizes == pytest.approx([0.1, 0.075, 0.05, 0.025], rel=0.05)
    lone = entangled_perturbations(experiment, experiment.plan()[0], {0: experiment.shards(1)[0]})
    assert lone == {}
    assert entangled_perturbations(entangled(0.0), experiment.plan()[0], experiment.shards(1)) == {}
    with pytest.raises(ConfigError, match="each of 3 groups has one; use fewer groups, or 0"):
        entangled(topology=Topology())
    with pytest.raises(ConfigError, match="entangled_noise must not be negative"):
        Diversity(entangled_noise=-0.1)


def test_perturbations_of_replicas_cancel_too():
    experiment = entangled(topology=Topology(groups=1, elastic=Elastic(group_pull=0.5)), epochs=1)
    start = experiment.initial_weights(0)
    result = Engine(experiment, LocalBackend()).run()
    cut = Worker(experiment.worker_specs()[0], experiment.splits.train).layout.num_parameters
    assert float((result.state.committed[0].vector - start.vector)[:cut].norm()) < 1e-4


@pytest.mark.parametrize("num_examples", [1, 2, 15, 16, 17, 33, 40])
@pytest.mark.parametrize(("first", "count"), [(0, None), (0, 1), (1, 1), (1, None), (2, 2)])
def test_samples_are_counted_as_batches_are_cut(tabular, num_examples, first, count):
    shard = torch.arange(num_examples)
    order = tabular.order(shard=shard, first_batch=first, num_batches=count)
    batches = list(epoch_batches(order, seed=0, batch_size=16))
    found = count_samples(num_examples, 16, first_batch=first, num_batches=count)
    assert found == sum(len(batch) for batch in batches)
