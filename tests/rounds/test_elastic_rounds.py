"""Replica annealing in the engine: both ends of the coupling, the arithmetic between, faults and resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hqde.aggregation import FedAvg, make_rule, pulled
from hqde.backends import LocalBackend
from hqde.checkpoints import CheckpointStore
from hqde.compression import Compression, PackedCodec
from hqde.data import Split
from hqde.rounds import Engine, RoundLog
from hqde.testing import Fault, FaultyBackend, orders_of, small_experiment
from hqde.topology import Elastic, Topology
from hqde.training import Diversity, Recipe, Worker
from hqde.weights import Weights

NO_SPREAD = Diversity(learning_rate_spread=0.0, dropout_spread=0.0, shared_init=True)
TINY, NEARLY = 1e-30, 1.0 - 1e-12  # what float32 takes for 0 and for 1, on the way that replicas go


def elastic(num_workers=4, groups=1, epochs=4, **pulls):
    return replace(
        small_experiment(num_workers=num_workers),
        topology=Topology(groups=groups, elastic=Elastic(**pulls)),
        epochs=epochs,
        diversity=NO_SPREAD,
        # SGD: Adam blows rounding where the gradient is zero up to a whole step.
        recipe=Recipe(batch_size=16, learning_rate=0.05, optimizer="sgd"),
    )


def plainly(experiment, **topology):
    return replace(experiment, topology=Topology(**topology))


class Watched(LocalBackend):
    """Keeps the workers' states from just before it closes."""

    def close(self):
        if self.workers:
            self.states = dict(self.worker_states())
        super().close()


def run(experiment, backend=None, **options):
    backend = backend or Watched()
    return Engine(experiment, backend, **options).run(), backend


def vectors(result):
    return [weights.vector for weights in result.state.committed]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(vectors(left), vectors(right), strict=True))


@pytest.mark.parametrize("pulls", [{}, {"global_pull": TINY}])
def test_groups_without_coupling_are_independent_to_the_bit(pulls):
    experiment = elastic(groups=4, **pulls)
    assert experiment.topology.elastic.couples_groups == bool(pulls)
    assert same(run(experiment)[0], run(plainly(experiment))[0])


def test_workers_of_a_group_without_coupling_are_independent_to_rounding():
    experiment = elastic(group_pull=0.0)
    _, backend = run(experiment)
    alone, _ = run(plainly(experiment))
    for worker, weights in enumerate(alone.state.committed):
        replica = backend.states[worker].tensors["replica"]
        torch.testing.assert_close(replica, weights.vector, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_workers_put_back_to_their_centre_are_federated_averaging_to_the_bit(groups):
    experiment = elastic(groups=groups, group_pull=NEARLY)
    assert experiment.topology.elastic.keeps_replicas
    assert same(run(experiment)[0], run(plainly(experiment, groups=groups))[0])


def test_groups_put_back_to_their_mean_are_federated_averaging_to_rounding():
    experiment = elastic(groups=4, global_pull=1.0)
    apart, together = run(experiment)[0], run(plainly(experiment, groups=1))[0]
    for vector in vectors(apart):
        torch.testing.assert_close(vector, vectors(together)[0], rtol=1e-5, atol=1e-5)


def test_replicas_and_centre_move_as_written_by_hand():
    experiment = elastic(num_workers=2, epochs=3, group_pull=0.2, group_pull_end=0.8)
    experiment = replace(experiment, partitioner=Split(), server=FedAvg(0.5))
    result, backend = run(experiment)

    workers = [Worker(spec, experiment.splits.train) for spec in experiment.worker_specs()]
    cut = workers[0].layout.num_parameters
    centre, replicas, integers = experiment.initial_weights(0), [None, None], None
    for plan in experiment.plan():
        integers = centre.integers
        moved, samples = [], []
        for i, order in enumerate(orders_of(experiment, plan.index)):
            begin = centre.vector
            if replicas[i] is not None:
                pull = 0.2 + 0.6 * plan.progress[0]
                begin = replicas[i] + pull * (centre.vector - replicas[i])
            update = workers[i].train_round(replace(order, start=Weights(begin, centre.integers)))
            replicas[i] = begin + update.delta
            moved.append(replicas[i] - centre.vector)
            samples.append(update.num_samples)
            integers = torch.maximum(integers, update.integers)
        mean = sum(m * s for m, s in zip(moved, samples, strict=True)) / sum(samples)
        step = torch.cat([0.5 * mean[:cut], mean[cut:]])  # the server's rate is not for buffers
        centre = Weights(centre.vector + step, integers)
    torch.testing.assert_close(vectors(result)[0], centre.vector, rtol=1e-4, atol=1e-5)
    for i, replica in enumerate(replicas):
        torch.testing.assert_close(backend.states[i].tensors["replica"], replica, rtol=1e-4, atol=1e-5)


def test_a_stronger_coupling_leaves_groups_nearer_to_each_other():
    apart = []
    for pull in (TINY, 0.3, 0.9):
        found = torch.stack(vectors(run(elastic(groups=4, global_pull=pull))[0]))
        apart.append(float((found - found.mean(dim=0)).norm()))
    assert apart[0] > 1.3 * apart[1] > 1.3**2 * apart[2] > 0.0


def test_a_pull_changes_the_weights_but_not_those_it_was_given():
    vector, centre = torch.tensor([1.0, -3.0]), torch.tensor([5.0, 1.0])
    before = vector.clone(), centre.clone()
    assert pulled(vector, centre, 0.5).tolist() == [3.0, -1.0]
    assert torch.equal(pulled(vector, centre, 0.0), vector)
    assert torch.equal(pulled(vector, centre, 1.0), centre)
    assert torch.equal(vector, before[0])
    assert torch.equal(centre, before[1])


@pytest.mark.parametrize(
    "experiment",
    [
        elastic(group_pull=0.1, group_pull_end=0.9),
        elastic(groups=2, group_pull=0.3, global_pull=0.4, global_pull_end=0.0),
    ],
    ids=["in one group", "in and between two"],
)
def test_resume_gives_the_bits_of_an_uninterrupted_run(tmp_path, experiment):
    whole, watched = run(experiment)
    store = CheckpointStore(tmp_path / "checkpoints")
    broken = FaultyBackend(LocalBackend(), (Fault(1, 3, "interrupt"),))
    with pytest.raises(KeyboardInterrupt):
        Engine(experiment, broken, store=store).run()
    again = Watched()
    resumed = Engine(experiment, again, store=store).run(resume=True)
    assert same(resumed, whole)
    for worker, state in watched.states.items():
        assert torch.equal(state.tensors["replica"], again.states[worker].tensors["replica"])


def test_a_refused_worker_begins_again_at_the_centre():
    experiment = elastic(num_workers=3, group_pull=0.0)
    faulty = FaultyBackend(Watched(), (Fault(1, 1, "nan_delta"),))
    result, _ = run(experiment, faulty)
    assert faulty.injected == {"nan_delta": 1}
    assert all(torch.isfinite(vector).all() for vector in vectors(result))
    assert all(torch.isfinite(s.tensors["replica"]).all() for s in faulty.inner.states.values())


def test_a_robust_rule_makes_the_centre():
    # Under weak coupling rows are how far replicas stand from the centre; a median of three is no mean.
    plain = elastic(num_workers=3, group_pull=0.3)
    robust = replace(plain, rule=make_rule("coordinate_median", num_byzantine=1))
    assert not same(run(plain)[0], run(robust)[0])
    fault = FaultyBackend(LocalBackend(), (Fault(1, 2, "nan_delta"),))
    Engine(robust, fault).run()
    assert fault.injected == {"nan_delta": 1}


def test_encoded_deltas_leave_replicas_where_the_centre_takes_them_to_be():
    experiment = replace(elastic(group_pull=0.5), compression=Compression(PackedCodec(bits=6)))
    result, backend = run(experiment)
    plain, _ = run(elastic(group_pull=0.5))
    assert not same(result, plain)
    far = float((vectors(result)[0] - vectors(plain)[0]).norm() / vectors(plain)[0].norm())
    assert far < 0.2
    assert set(backend.states[0].tensors) >= {"replica", "owed"}


def test_the_history_says_how_far_everybody_was_pulled():
    recorder = RoundLog()
    experiment = elastic(groups=2, epochs=2, group_pull=0.5, group_pull_end=1.0, global_pull_end=1.0)
    run(experiment, listener=recorder)
    found = [(r.scope, r.group_pull, r.global_pull) for r in recorder.records]
    assert found == [("global", 0.5, 0.5), ("global", 0.75, 1.0)]
