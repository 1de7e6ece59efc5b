"""The engine: what rounds do to weights, against arithmetic written out by hand, and under faults."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from hqde.aggregation import Momentum
from hqde.backends import LocalBackend
from hqde.checkpoints import CheckpointStore
from hqde.data import Dirichlet, Replicate, Split, load_splits
from hqde.ensemble import make_combiner
from hqde.errors import CheckpointError, NonFiniteError, QuorumError, WorkerError
from hqde.models import ModelSpec, model_spec
from hqde.rounds import Engine, Experiment, GroupSettings
from hqde.rounds.members import MemberPool
from hqde.testing import Fault, FaultyBackend, orders_of, small_experiment
from hqde.topology import Topology
from hqde.training import Diversity, Recipe, Worker
from hqde.weights import Layout, Weights

NO_SPREAD = Diversity(learning_rate_spread=0.0, dropout_spread=0.0)


class Recorder:
    """A listener that keeps everything."""

    def __init__(self):
        self.rounds, self.events, self.first_round = [], [], None

    def on_start(self, plans, first_round):
        self.first_round = first_round

    def on_step(self, worker_id, done, total):
        assert 1 <= done <= total

    def on_round(self, record):
        json.dumps(record.to_dict(), allow_nan=False)
        self.rounds.append(record)

    def on_event(self, event):
        self.events.append(event)


def run(experiment, backend=None, **options):
    recorder = Recorder()
    engine = Engine(experiment, backend or LocalBackend(), listener=recorder, **options)
    return engine.run(), recorder


def vectors(result):
    return [weights.vector for weights in result.state.committed]


def test_fedavg_equals_one_model_moved_by_the_averaged_deltas():
    # SGD: Adam blows the rounding of a bias before batch normalisation (gradient zero) up to a whole step.
    experiment = replace(
        small_experiment(num_workers=3),
        topology=Topology(groups=1),
        partitioner=Split(),
        diversity=NO_SPREAD,
        recipe=Recipe(batch_size=16, learning_rate=0.05, optimizer="sgd"),
    )
    result, _ = run(experiment)

    # By hand: each worker trains from the common weights; the model moves by the mean of the differences,
    # weighted by how many examples each worker saw.
    specs = experiment.worker_specs()
    workers = [Worker(spec, experiment.splits.train) for spec in specs]
    common = experiment.initial_weights(0)
    for plan in experiment.plan():
        shards = experiment.shards(plan.epoch)
        moved = torch.zeros_like(common.vector, dtype=torch.float64)
        counters = []
        for worker, order in zip(workers, orders_of(experiment, plan.index), strict=True):
            update = worker.train_round(replace(order, start=common))
            share = len(shards[order.worker_id]) / sum(len(shard) for shard in shards.values())
            moved += update.delta.double() * share
            counters.append(update.integers)
        common = Weights((common.vector.double() + moved).float(), torch.stack(counters).amax(dim=0))
    torch.testing.assert_close(vectors(result)[0], common.vector, rtol=1e-6, atol=1e-6)
    assert torch.equal(result.state.committed[0].integers, common.integers)


def test_identical_workers_with_identical_data_stay_identical():
    experiment = small_experiment(num_workers=2)
    experiment = replace(experiment, partitioner=Replicate(), diversity=NO_SPREAD, dropout_rate=0.0)
    one = experiment.worker_specs()[0]
    orders = orders_of(experiment)
    twins = [Worker(one, experiment.splits.train), Worker(one, experiment.splits.train)]
    first, second = (twin.train_round(orders[0]) for twin in twins)
    assert torch.equal(first.delta, second.delta)
    mean = torch.stack([first.delta, second.delta]).mean(dim=0)
    assert torch.equal(mean, first.delta)


def test_workers_of_a_group_hold_the_same_weights_and_groups_differ():
    experiment = replace(small_experiment(num_workers=4), topology=Topology(groups=2))
    backend = LocalBackend()
    engine = Engine(experiment, backend)
    engine.prepare()
    result = engine.run()
    first, second = vectors(result)
    assert not torch.equal(first, second)
    assert len(result.ensemble) == 2
    assert result.state.committed_for(0) is result.state.committed_for(1)


def test_the_same_experiment_gives_the_same_bits_and_another_seed_does_not():
    experiment = replace(small_experiment(num_workers=2), topology=Topology.independent())
    once, again = run(experiment)[0], run(experiment)[0]
    other = run(replace(experiment, seed=1))[0]
    assert all(torch.equal(a, b) for a, b in zip(vectors(once), vectors(again), strict=True))
    assert not torch.equal(vectors(once)[0], vectors(other)[0])


def test_branching_starts_from_common_weights_and_ends_apart():
    experiment = replace(small_experiment(num_workers=2), topology=Topology(branch_at=0.5), epochs=4)
    result, recorder = run(experiment)
    assert [len(record.groups) for record in recorder.rounds] == [1, 1, 2, 2]
    assert [record.scope for record in recorder.rounds] == ["group", "group", "none", "none"]
    assert [event.kind for event in recorder.events] == ["branched"]
    rates = [record.learning_rate for record in recorder.rounds]
    # Restarted at 0.67 of the peak; the middle of the last of four steps is 7/16 of the way to the end.
    assert rates[2] == pytest.approx(0.05 * 0.67 * 0.5 * (1 + math.cos(math.pi * 7 / 16)))
    first, second = vectors(result)
    assert not torch.equal(first, second)


def test_a_trunk_of_one_worker_trains_alone_and_all_start_from_it():
    topology = Topology(branch_at=0.5, trunk_workers=1)
    experiment = replace(small_experiment(num_workers=3), topology=topology, epochs=4, partitioner=Split())
    result, recorder = run(experiment)
    assert [[w.worker for w in record.workers] for record in recorder.rounds] == [[0], [0]] + 2 * [[0, 1, 2]]
    samples = [sum(w.samples for w in record.workers) for record in recorder.rounds]
    rows = len(experiment.splits.train)
    assert all(rows - 3 <= count <= rows for count in samples), "an epoch costs the same before and after"
    assert len(result.ensemble) == 3
    assert len({tuple(vector.tolist()) for vector in vectors(result)}) == 3


def test_global_rounds_make_all_groups_equal():
    experiment = replace(
        small_experiment(num_workers=4), topology=Topology(groups=2, global_every=2), epochs=4
    )
    committed = []

    class Watch(Engine):
        def _commit(self, plan, state, updates):
            commits = super()._commit(plan, state, updates)
            committed.append([commit.weights.vector for commit in commits])
            return commits

    Watch(experiment, LocalBackend()).run()
    same = [torch.equal(first, second) for first, second in committed]
    assert same == [False, True, False, False], "averaged in epoch 2; epoch 4 is too late"


def test_rounds_of_steps_see_every_example_once_an_epoch():
    experiment = replace(
        small_experiment(num_workers=2), topology=Topology(groups=1, every=2), recipe=Recipe(batch_size=13)
    )
    result, recorder = run(experiment)
    per_epoch = [r for r in recorder.rounds if r.epoch == 1]
    assert len(per_epoch) > 1
    expected = sum(len(shard) for shard in experiment.shards(1).values())
    assert sum(w.samples for r in per_epoch for w in r.workers) == expected
    assert [r.validation is not None for r in recorder.rounds] == [
        r.round % len(per_epoch) == 0 for r in recorder.rounds
    ]
    assert result.state.totals.worker_samples == expected * experiment.epochs


def test_local_buffers_stay_with_their_worker_and_the_member_gets_the_average():
    experiment = replace(small_experiment(num_workers=2), buffers="local", diversity=NO_SPREAD)
    backend = LocalBackend()
    engine = Engine(experiment, backend)
    engine.prepare()
    states = {}
    close = backend.close
    backend.close = lambda: (states.update(backend.worker_states()), close())
    result = engine.run()
    own = [states[worker].tensors["buffers"] for worker in (0, 1)]
    assert not torch.equal(own[0], own[1])
    layout = Layout.of(experiment.model.build(dropout_rate=0.1))
    kept = result.state.committed[0].vector[layout.num_parameters :]
    torch.testing.assert_close(kept, (own[0] + own[1]) / 2)


@pytest.mark.parametrize(
    "topology", [Topology(groups=1), Topology(groups=1, every=2), Topology(branch_at=0.5)]
)
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resume_gives_the_bits_of_an_uninterrupted_run(tmp_path, topology, stop_after):
    experiment = replace(
        small_experiment(num_workers=2), topology=topology, epochs=4, server=Momentum(), early_stopping=3
    )
    whole, _ = run(experiment)
    store = CheckpointStore(tmp_path / "checkpoints")
    rounds_per_epoch = len(experiment.plan()) // experiment.epochs
    fault = Fault(1, stop_after * rounds_per_epoch + 1, "interrupt")
    broken = FaultyBackend(LocalBackend(), (fault,))
    with pytest.raises(KeyboardInterrupt):
        Engine(experiment, broken, store=store).run()
    assert broken.injected == {"interrupt": 1}
    recorder = Recorder()
    resumed = Engine(experiment, LocalBackend(), store=store, listener=recorder).run(resume=True)
    assert recorder.first_round == stop_after * rounds_per_epoch + 1
    assert [event.kind for event in recorder.events if event.kind == "resumed"] == ["resumed"]
    for mine, theirs in zip(resumed.ensemble.members, whole.ensemble.members, strict=True):
        for name, tensor in mine.model.state_dict().items():
            assert torch.equal(tensor, theirs.model.state_dict()[name]), name
        assert mine.score == theirs.score
    assert resumed.state.totals.worker_samples == whole.state.totals.worker_samples


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_start(tmp_path):
    experiment = small_experiment(num_workers=2)
    store, recorder = CheckpointStore(tmp_path / "none"), Recorder()
    resumed = Engine(experiment, LocalBackend(), store=store, listener=recorder).run(resume=True)
    assert [(event.kind, event.round_index) for event in recorder.events] == [("resumed", 0)]
    whole, _ = run(experiment)
    assert all(torch.equal(a, b) for a, b in zip(vectors(resumed), vectors(whole), strict=True))


def test_without_a_store_there_is_nothing_to_resume():
    with pytest.raises(CheckpointError, match="without a checkpoint store"):
        Engine(small_experiment(), LocalBackend()).run(resume=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan_loss", "training loss is nan"),
        ("nan_delta", "1 of .* elements of its delta are not finite"),
        ("stale", "belongs to round 0, not 1"),
    ],
)
def test_a_bad_update_is_rejected_with_its_reason_and_the_run_goes_on(kind, reason):
    experiment = replace(small_experiment(num_workers=3), topology=Topology(groups=1))
    backend = FaultyBackend(LocalBackend(), (Fault(1, 1, kind),))
    result, recorder = run(experiment, backend)
    assert backend.injected == {kind: 1}
    assert [(e.kind, e.round_index, e.worker_id) for e in recorder.events] == [("rejected", 1, 1)]
    assert re.search(reason, recorder.events[0].reason)
    assert [w.status for w in recorder.rounds[0].workers] == ["admitted", "rejected", "admitted"]
    assert [w.status for w in recorder.rounds[1].workers] == ["admitted"] * 3
    assert result.state.totals.rejected == 1
    assert all(torch.isfinite(vector).all() for vector in vectors(result))


def test_a_duplicate_counts_once():
    experiment = replace(small_experiment(num_workers=3), topology=Topology(groups=1))
    clean, _ = run(experiment)
    backend = FaultyBackend(LocalBackend(), (Fault(2, 1, "duplicate"),))
    result, recorder = run(experiment, backend)
    assert [e.kind for e in recorder.events] == ["rejected"]
    # The first update counted and the second did not; only the duplicate's worker starts its optimizer anew.
    assert result.state.totals.rejected == 1
    assert len(clean.state.committed) == len(result.state.committed)


def test_a_lone_worker_that_fails_keeps_its_groups_weights_for_the_round():
    experiment = replace(small_experiment(num_workers=2), topology=Topology.independent(), epochs=3)
    backend = FaultyBackend(LocalBackend(), (Fault(0, 2, "failure"),))
    result, recorder = run(experiment, backend)
    assert [(e.kind, e.worker_id) for e in recorder.events] == [("failed", 0), ("skipped", None)]
    assert result.state.totals.failures == 1
    assert result.state.totals.skipped == 1
    assert recorder.rounds[1].workers[0].status == "failed"


def test_a_run_in_which_nobody_is_usable_ends_with_the_reason():
    experiment = replace(small_experiment(num_workers=1), topology=Topology(groups=1), epochs=5)
    backend = FaultyBackend(LocalBackend(), tuple(Fault(0, r, "nan_loss") for r in range(1, 6)))
    with pytest.raises(
        QuorumError, match=r"3 rounds in a row .*training loss is nan.*lower the learning rate"
    ):
        run(experiment, backend)
    assert backend.injected == {"nan_loss": 3}


def test_when_all_workers_fail_the_run_ends_with_the_first_reason():
    experiment = replace(small_experiment(num_workers=2), topology=Topology(groups=1))
    backend = FaultyBackend(LocalBackend(), (Fault(0, 1, "failure"), Fault(1, 1, "failure")))
    with pytest.raises(WorkerError, match="all 2 workers failed in round 1: injected failure") as caught:
        run(experiment, backend)
    assert caught.value.worker_id == 0


def test_a_diverging_run_does_not_ship_non_finite_members():
    experiment = replace(
        small_experiment(num_workers=2),
        topology=Topology.independent(),
        recipe=Recipe(optimizer="sgd", learning_rate=1e30, clip_norm=0.0, batch_size=16),
        epochs=5,
    )
    with pytest.raises((QuorumError, NonFiniteError)):
        run(experiment)


def test_early_stopping_keeps_the_best_epoch_of_the_ensemble():
    experiment = replace(
        small_experiment(num_workers=2),
        topology=Topology.independent(),
        epochs=30,
        early_stopping=2,
        recipe=Recipe(batch_size=16, learning_rate=0.3, schedule="constant"),
        calibrate=False,
    )
    result, recorder = run(experiment)
    assert result.stopped_early is not None
    assert len(recorder.rounds) == result.stopped_early + 2
    losses = [record.validation.loss for record in recorder.rounds]
    assert losses[result.stopped_early - 1] == min(losses)
    targets = experiment.splits.validation.targets
    probabilities = result.ensemble.predict_proba(experiment.splits.validation)
    kept = -probabilities[torch.arange(len(targets)), targets].double().clamp_min(1e-38).log().mean()
    assert float(kept) == pytest.approx(min(losses), rel=1e-4)


class Listening(nn.Module):
    """Keeps the precision of every product that it makes when it does not train."""

    heard: ClassVar[list[torch.dtype]] = []

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        if not self.training:
            self.heard.append(outputs.dtype)
        return outputs


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16-mixed", torch.bfloat16), ("fp16-mixed", torch.float16)],
)
def test_validation_rows_are_predicted_in_the_precision_of_training(precision, dtype):
    experiment = replace(
        small_experiment(num_workers=2),
        model=ModelSpec("test_engine:Listening", {}, Listening),
        topology=Topology.independent(),
        dropout_rate=None,
        recipe=Recipe(batch_size=16, precision=precision),
        calibrate=False,
    )
    Listening.heard.clear()
    result, recorder = run(experiment)
    assert dtype in Listening.heard
    if precision != "fp32":
        looks = [value for value in Listening.heard if value != torch.float32]
        assert len(looks) >= 2 * len(recorder.rounds)
    Listening.heard.clear()
    result.ensemble.predict_proba(experiment.splits.validation)
    assert set(Listening.heard) == {torch.float32}  # the artefact is what it was


def test_members_are_validated_in_the_precision_of_their_own_group():
    experiment = replace(
        small_experiment(num_workers=2),
        model=ModelSpec("test_engine:Listening", {}, Listening),
        topology=Topology.independent(),
        dropout_rate=None,
        epochs=1,
        groups={1: GroupSettings(recipe={"precision": "bf16-mixed"})},
        calibrate=False,
    )
    pool = MemberPool(experiment, {})
    groups = ((0,), (1,))
    ensemble = pool.ensemble(groups, [experiment.initial_weights(0)] * 2, {})
    Listening.heard.clear()
    pool.validate(ensemble, LocalBackend(), groups)
    assert sorted(map(str, Listening.heard)) == ["torch.bfloat16", "torch.float32"]


def test_resuming_a_run_that_stopped_early_changes_nothing(tmp_path):
    experiment = replace(
        small_experiment(num_workers=2),
        topology=Topology.independent(),
        epochs=30,
        early_stopping=2,
        recipe=Recipe(batch_size=16, learning_rate=0.3, schedule="constant"),
    )
    store = CheckpointStore(tmp_path / "checkpoints")
    first = Engine(experiment, LocalBackend(), store=store).run()
    again = Engine(experiment, LocalBackend(), store=store).run(resume=True)
    assert first.stopped_early == again.stopped_early
    assert again.state.round_index == first.state.round_index
    probabilities = [r.ensemble.predict_proba(experiment.splits.test) for r in (first, again)]
    assert torch.equal(*probabilities)


def test_group_overrides_reach_the_workers_and_the_members():
    experiment = replace(
        small_experiment(num_workers=4),
        topology=Topology(groups=2),
        diversity=NO_SPREAD,
        recipe=Recipe(batch_size=16, learning_rate=0.05, schedule="constant", warmup=0.0),
        groups={1: GroupSettings(recipe={"learning_rate": 0.01, "batch_size": 8})},
    )
    _, recorder = run(experiment)
    rates = [worker.lr for worker in recorder.rounds[0].workers]
    assert rates[0] == rates[1] == pytest.approx(5 * rates[2])
    assert rates[2] == rates[3]


def test_bytes_are_those_of_the_vectors_that_travel():
    together = run(replace(small_experiment(num_workers=4), topology=Topology(groups=2)))[0]
    nbytes = together.state.committed[0].nbytes
    assert together.state.totals.sent_bytes == 2 * 4 * nbytes * 2  # up and down, 4 workers, 2 rounds
    alone = run(replace(small_experiment(num_workers=2), topology=Topology.independent()))[0]
    assert alone.state.totals.sent_bytes == 0


# -- combiners that learn ----------------------------------------------------------------------------------


@pytest.mark.parametrize("combiner", ["mean", "stacking"])
def test_a_matrix_scaling_makes_up_for_workers_of_few_classes(combiner):
    splits = load_splits("digits")
    experiment = Experiment(
        splits=splits,
        model=model_spec("mlp", input_shape=(1, 8, 8), num_outputs=10),
        num_workers=8,
        epochs=4,
        topology=Topology(groups=2),
        partitioner=Dirichlet(0.1),
        combiner=make_combiner(combiner),
        matrix_scaling=True,
    )
    ensemble = run(experiment)[0].ensemble
    again = ensemble.fit_combiner(combiner, splits.validation, matrix_scaling=True)
    assert torch.equal(again.matrix_scaling.weight, ensemble.matrix_scaling.weight)
    without = ensemble.with_temperature(1.0).evaluate(splits.test).accuracy
    assert ensemble.evaluate(splits.test).accuracy > without + 0.1


@pytest.mark.parametrize(("name", "calibrate"), [("stacking", True), ("entanglement", False)])
def test_a_combiner_is_fitted_on_the_validation_rows_at_the_end(name, calibrate):
    experiment = replace(
        small_experiment(), topology=Topology(), combiner=make_combiner(name), calibrate=calibrate
    )
    ensemble = run(experiment)[0].ensemble
    again = ensemble.fit_combiner(name, experiment.splits.validation, calibrate=calibrate)
    assert ensemble.combiner == again.combiner
    assert len(ensemble.combiner.shares) == len(ensemble)
    assert ensemble.temperature == again.temperature
    assert (ensemble.temperature == 1.0) is not calibrate
