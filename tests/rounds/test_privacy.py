"""Differential privacy of a run: the release by hand, the noise measured, what is spent, what is refused."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from hqde.aggregation import (
    AggregationPolicy,
    Combination,
    FedAvg,
    GaussianMechanism,
    Mean,
    NormBound,
    make_rule,
)
from hqde.backends import LocalBackend, WrappedBackend
from hqde.balance import Adaptive
from hqde.checkpoints import CheckpointStore
from hqde.data import Dirichlet, Iid, Replicate, Split
from hqde.errors import ConfigError, MissingExtraError, PreconditionError
from hqde.quantum import privacy_spent
from hqde.rounds import Engine, FaultPolicy, Privacy, RoundLog
from hqde.rounds.commit import Commit, couple_groups
from hqde.rounds.privacy import PrivateBackend
from hqde.testing import Fault, FaultyBackend, orders_of, small_experiment
from hqde.topology import Elastic, Topology
from hqde.training import Diversity, Worker
from hqde.weights import Weights

needs_opacus = pytest.mark.skipif(
    "opacus" not in sys.modules and __import__("importlib.util").util.find_spec("opacus") is None,
    reason="extra privacy",
)
pytestmark = needs_opacus


def private(num_workers=4, groups=1, epochs=2, **settings):
    given = {"clip_norm": 0.05, "noise_multiplier": 0.5, "delta": 1e-3, "key": 11} | settings
    base = small_experiment(num_workers=num_workers)
    model = replace(base.model, options=dict(base.model.options) | {"norm": "group"})
    return replace(
        base,
        model=model,
        topology=Topology(groups=groups),
        partitioner=Iid(),
        epochs=epochs,
        privacy=Privacy(**given),
    )


def run(experiment, backend=None, **options):
    recorder = RoundLog()
    result = Engine(experiment, backend or LocalBackend(), listener=recorder, **options).run()
    for record in recorder.records:
        json.dumps(record.to_dict(), allow_nan=False)
    return result, recorder


def vectors(result):
    return [weights.vector for weights in result.state.committed]


def test_a_round_is_the_sum_of_clipped_deltas_over_a_fixed_number():
    # So little noise that what is left is the clipping, with shares that sample counts play no part in.
    experiment = replace(private(epochs=1, noise_multiplier=1e-9), partitioner=Dirichlet(0.5))
    found, recorder = run(experiment)
    start = experiment.initial_weights(0)
    total = torch.zeros_like(start.vector, dtype=torch.float64)
    clipped = 0
    for spec, order in zip(experiment.worker_specs(), orders_of(experiment), strict=True):
        delta = Worker(spec, experiment.splits.train).train_round(replace(order, start=start)).delta.double()
        clipped += float(delta.norm()) > 0.05
        total += delta * min(1.0, 0.05 / float(delta.norm()))
    assert clipped == 4, "nothing was clipped, so nothing was tested"
    expected = start.vector.double() + total / 4
    torch.testing.assert_close(vectors(found)[0].double(), expected, rtol=0, atol=1e-7)
    assert [0 < worker.weight < 0.25 for worker in recorder.records[0].workers] == [True] * 4


@pytest.mark.parametrize(("clip_norm", "noise_multiplier", "rate"), [(1.0, 2.0, 1.0), (0.3, 0.7, 0.5)])
def test_the_noise_of_a_release_has_the_deviation_that_is_told(clip_norm, noise_multiplier, rate):
    privacy = Privacy(clip_norm, noise_multiplier, sample_rate=rate, key=5)
    backend = PrivateBackend(LocalBackend(), privacy, group_size=8)
    size = 200_000
    rows = [torch.zeros(size), torch.zeros(size)]
    shares = torch.tensor([0.9, 0.1], dtype=torch.float64)
    found = backend.combine(Combination(rows, shares, Mean(), FedAvg(), torch.zeros(size), {}, size))
    told = privacy.figures(10, 8)["noise_std"]
    assert told == pytest.approx(noise_multiplier * clip_norm / (rate * 8))
    assert float(found.vector.std()) == pytest.approx(told, rel=0.01)
    assert abs(float(found.vector.mean())) < 5 * told / math.sqrt(size)
    assert found.decision.weights.tolist() == [1 / (rate * 8)] * 2


def test_noise_comes_before_the_server_optimizer_and_once():
    privacy = Privacy(1.0, 1.0, key=5)
    found = []
    for rate in (1.0, 0.5):
        backend = PrivateBackend(LocalBackend(), privacy, group_size=2)
        task = Combination([torch.zeros(6)], torch.ones(1), Mean(), FedAvg(rate), torch.zeros(6), {}, 6)
        found.append(backend.combine(task).vector)
    torch.testing.assert_close(found[1], 0.5 * found[0])


def test_what_is_spent_stands_in_history_and_figures_and_only_grows():
    from hqde.rounds import final_metrics

    experiment = private(groups=2, epochs=3)
    result, recorder = run(experiment)
    by_hand = [privacy_spent(sample_rate=1.0, noise_multiplier=0.5, rounds=r, delta=1e-3) for r in (1, 2, 3)]
    assert [record.epsilon for record in recorder.records] == by_hand
    assert by_hand == sorted(by_hand)
    predictions = result.ensemble.predict_labelled(experiment.splits.test)
    metrics = final_metrics(experiment, result, predictions, backend="local")
    assert metrics["privacy"]["epsilon"] == by_hand[-1]
    assert metrics["privacy"]["rounds"] == 3
    assert metrics["privacy"]["noise_std"] == pytest.approx(0.5 * 0.05 / 2)
    assert [member.score for member in result.ensemble.members] == [1.0, 1.0]
    plain = replace(experiment, privacy=Privacy())
    assert final_metrics(plain, result, predictions, backend="local")["privacy"] is None


def test_the_noise_repeats_with_a_key_and_never_without_one():
    same = [vectors(run(private(groups=2))[0]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))
    assert not torch.equal(*same[0])
    other = [vectors(run(private(groups=2, key=None))[0])[0] for _ in range(2)]
    assert not torch.equal(*other)


def test_a_run_with_a_key_is_resumed_to_the_bit(tmp_path):
    experiment = private(epochs=4, sample_rate=0.7)
    whole, _ = run(experiment)
    store = CheckpointStore(tmp_path / "checkpoints")
    faults = tuple(Fault(worker, 3, "interrupt") for worker in range(4))  # whoever takes part
    with pytest.raises(KeyboardInterrupt):
        Engine(experiment, FaultyBackend(LocalBackend(), faults), store=store).run()
    resumed = Engine(experiment, LocalBackend(), store=store).run(resume=True)
    assert torch.equal(vectors(resumed)[0], vectors(whole)[0])


def test_workers_take_part_as_often_as_is_said():
    experiment = private(num_workers=6, epochs=60, sample_rate=0.3)
    result, recorder = run(experiment)
    counts = [len(record.workers) for record in recorder.records]
    assert 0 in counts
    assert max(counts) <= 6
    assert sum(counts) / (6 * 60) == pytest.approx(0.3, abs=0.08)
    sampled, everybody = (
        recorder.records[-1].epsilon,
        privacy_spent(sample_rate=1.0, noise_multiplier=0.5, rounds=60, delta=1e-3),
    )
    assert sampled < everybody
    assert result.state.totals.skipped == 0


def test_a_group_that_nobody_takes_part_in_releases_noise_all_the_same():
    experiment = private(groups=2, epochs=2, sample_rate=1e-9)
    result, recorder = run(experiment)
    assert [len(record.workers) for record in recorder.records] == [0, 0]
    told = experiment.privacy.figures(2, 2)["noise_std"]
    for group, vector in enumerate(vectors(result)):
        moved = vector - experiment.initial_weights(group).vector
        assert float(moved.std()) == pytest.approx(math.sqrt(2) * told, rel=0.2)
    assert recorder.events == []


def test_who_is_refused_begins_anew_whenever_its_turn_comes():
    class Listens(WrappedBackend):
        def __init__(self, inner):
            super().__init__(inner)
            self.fresh = {}

        def train(self, orders, **options):
            self.fresh |= {(order.worker_id, order.round_index): order.fresh_optimizer for order in orders}
            yield from super().train(orders, **options)

    experiment = private(epochs=20, sample_rate=0.5)
    alone = Listens(LocalBackend())
    run(experiment, alone)
    rounds = {w: [r for worker, r in sorted(alone.fresh) if worker == w] for w in range(4)}
    # A worker that sits out the round after the one in which it will be refused.
    worker, refused, following = next(
        (w, a, b) for w, taken in rounds.items() for a, b in itertools.pairwise(taken) if b > a + 1
    )
    watched = Listens(FaultyBackend(LocalBackend(), (Fault(worker, refused, "nan_delta"),)))
    run(experiment, watched)
    assert [key for key, fresh in watched.fresh.items() if fresh] == [(worker, following)]


def test_coupling_groups_of_a_private_run_does_not_tell_who_took_part():
    none = torch.zeros(0, dtype=torch.int64)
    ends = [Commit(Weights(torch.tensor([x]), none), {}, samples, ()) for x, samples in ((0.0, 8), (4.0, 0))]
    assert [float(c.weights.vector) for c in couple_groups(ends, 0.5)] == [0.0, 2.0]
    assert [float(c.weights.vector) for c in couple_groups(ends, 0.5, equally=True)] == [1.0, 3.0]
    experiment = replace(
        private(groups=2, sample_rate=0.4, noise_multiplier=1e-9),
        topology=Topology(groups=2, elastic=Elastic(global_pull=1.0)),
    )
    first, second = vectors(run(experiment)[0])
    assert torch.equal(first, second)


def test_rows_stay_with_their_worker_when_another_is_gone():
    experiment = private()
    everybody, there = experiment.shards(1), experiment.shards(1, present=frozenset({0, 2}))
    assert sorted(there) == [0, 2]
    assert all(torch.equal(there[worker], everybody[worker]) for worker in there)
    plain = replace(experiment, privacy=Privacy()).shards(1, present=frozenset({0, 2}))
    assert not torch.equal(plain[0], everybody[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rule": make_rule("coordinate_median", num_byzantine=1)}, "needs aggregation.rule = 'mean', got"),
        ({"policy": AggregationPolicy(norm_bound=NormBound())}, "privacy excludes aggregation.norm_bound"),
        ({"partitioner": Replicate()}, r"with this data.partition \(replicate\) other workers see them too"),
        ({"partitioner": Split()}, r"data.partition \(split\).*use 'iid' or 'dirichlet'"),
        ({"privacy": Privacy(1.0, delta=0.5)}, "delta=0.5 would let one of 4 workers .* less than 0.25"),
        ({"topology": Topology(groups=2, branch_at=0.5)}, "use no topology.branch_at"),
        ({"balancer": Adaptive()}, "run.balance = 'round_robin'"),
        ({"faults": FaultPolicy(min_workers=2)}, "min_workers=2: a round that is skipped tells how many"),
        ({"diversity": Diversity(entangled_noise=0.1)}, "privacy excludes diversity.entangled_noise=0.1"),
    ],
)
def test_what_the_promise_would_not_hold_for_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(private(), **changes)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clip_norm": -1.0}, "privacy.clip_norm must be 0 .* got -1"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be above 0 .* without noise there is no privacy"),
        ({"delta": 0.0}, "privacy.delta lies between 0 and 1"),
        ({"sample_rate": 1.2}, r"privacy.sample_rate lies in \(0, 1\], got 1.2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Privacy(**settings)
    with pytest.raises(ConfigError, match="clipping norm must be above 0"):
        GaussianMechanism(0.0, 1.0)
    with pytest.raises(ConfigError, match="noise multiplier must be from 0 on"):
        GaussianMechanism(1.0, math.nan)


def test_running_statistics_are_refused_before_anything_is_trained():
    experiment = replace(private(), model=small_experiment().model)
    with pytest.raises(PreconditionError, match=r"running statistics .* use model.norm=group"):
        run(experiment)


def test_without_opacus_a_private_run_does_not_begin(monkeypatch):
    from hqde.quantum import noise

    noise._rdp_of_a_round.cache_clear()
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hqde\[privacy\]'"):
        run(private(delta=1e-4, noise_multiplier=0.123))
    assert Privacy().epsilon(5) is None
