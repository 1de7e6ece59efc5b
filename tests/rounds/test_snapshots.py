"""Snapshots: which weights are kept, where they go, and that nothing of it is lost on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hqde.backends import LocalBackend
from hqde.checkpoints import CheckpointStore
from hqde.ensemble import Ensemble
from hqde.errors import ConfigError
from hqde.rounds import Engine, Snapshots
from hqde.rounds.members import MemberPool
from hqde.testing import Fault, FaultyBackend, small_experiment
from hqde.topology import Topology
from hqde.training import Recipe
from hqde.weights import Layout


def cyclic(count=2, epochs=6, groups=2, **changes):
    usual = {
        "topology": Topology(groups=groups),
        "recipe": Recipe(batch_size=16, learning_rate=0.05, cycles=count + 1),
        "snapshots": Snapshots(count=count),
    }
    return replace(small_experiment(num_workers=2 * groups), epochs=epochs, **(usual | changes))


class Watch(Engine):
    """Keeps what each epoch committed."""

    def _round(self, plan, state):
        state, record = super()._round(plan, state)
        self.seen = {**getattr(self, "seen", {}), plan.epoch: [w.vector.clone() for w in state.committed]}
        return state, record


def flat(member):
    return Layout.of(member.model).read(member.model).vector


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(flat(a), flat(b)) for a, b in zip(left.members, right.members, strict=True)
    )


def test_the_pool_holds_the_last_weights_and_then_each_snapshot_group_by_group():
    engine = Watch(cyclic(), LocalBackend())
    result = engine.run()
    expected = [engine.seen[epoch][group] for epoch in (6, 2, 4) for group in (0, 1)]
    assert [member.member_id for member in result.pool.members] == [0, 1, 2, 3, 4, 5]
    for member, vector in zip(result.pool.members, expected, strict=True):
        assert torch.equal(flat(member), vector)
    assert result.pool.provenance["snapshots"] == {"2": 2, "3": 2, "4": 4, "5": 4}
    assert len(result.ensemble) == 2
    assert Engine(cyclic(snapshots=Snapshots()), LocalBackend()).run().pool is None


def test_snapshots_join_the_ensemble_where_they_are_asked_to():
    apart = Engine(cyclic(), LocalBackend()).run()
    joined = Engine(cyclic(snapshots=Snapshots(count=2, join=True)), LocalBackend()).run()
    assert joined.pool is None
    assert same(joined.ensemble, apart.pool)
    assert joined.ensemble.provenance["snapshots"] == apart.pool.provenance["snapshots"]
    assert "snapshots" not in apart.ensemble.provenance


def test_epochs_of_members_that_are_dropped_are_not_told(monkeypatch):
    monkeypatch.setattr(MemberPool, "sound_members", lambda *_: ([0, 1, 2, 5], ("3 and 4 stand out",)))
    joined = cyclic(snapshots=Snapshots(count=2, join=True), drop_outliers=True)
    ensemble = Engine(joined, LocalBackend()).run().ensemble
    assert ensemble.member_ids == (0, 1, 2, 5)
    assert ensemble.provenance["snapshots"] == {"2": 2, "5": 4}


def test_nothing_leaves_the_device_before_all_have_predicted_there(monkeypatch):
    done = []

    def noted(name):
        plain = getattr(Ensemble, name)

        def call(ensemble, *arguments, **keywords):
            done.append(name)
            return plain(ensemble, *arguments, **keywords)

        return call

    monkeypatch.setattr(Ensemble, "to", noted("to"))
    monkeypatch.setattr(Ensemble, "predict_members", noted("predict_members"))
    Engine(cyclic(drop_outliers=True), LocalBackend()).run()
    assert done[-2:] == ["to", "to"], "the ensemble, and the pool that shares its models"
    assert done.index("to") > max(i for i, name in enumerate(done) if name == "predict_members")


@pytest.mark.parametrize(("interrupted", "count"), [(3, 1), (6, 2)])
def test_snapshots_outlive_a_crash(tmp_path, interrupted, count):
    whole = Engine(cyclic(), LocalBackend()).run()
    store = CheckpointStore(tmp_path / "checkpoints")
    broken = FaultyBackend(LocalBackend(), (Fault(1, interrupted, "interrupt"),))
    with pytest.raises(KeyboardInterrupt):
        Engine(cyclic(), broken, store=store).run()
    assert len(store.latest()[1].manifest["snapshots"]) == count
    resumed = Engine(cyclic(), LocalBackend(), store=store).run(resume=True)
    assert same(resumed.pool, whole.pool)


def test_snapshots_from_after_what_early_stopping_kept_are_left_out():
    experiment = cyclic(
        epochs=30,
        count=5,
        early_stopping=2,
        recipe=Recipe(batch_size=16, learning_rate=0.3, schedule="constant"),
    )
    result = Engine(experiment, LocalBackend()).run()
    assert result.stopped_early is not None
    kept = [epoch for epoch in (5, 10, 15, 20, 25) if epoch < result.stopped_early]
    assert len(result.pool) == 2 * (1 + len(kept))


@pytest.mark.parametrize(
    ("count", "epochs", "expected"), [(1, 2, (1,)), (3, 20, (5, 10, 15)), (2, 7, (2, 5)), (0, 1, ())]
)
def test_they_divide_the_run_evenly(count, epochs, expected):
    assert Snapshots(count=count).epochs(epochs) == expected


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Snapshots(count=-1), "count must not be negative, got -1"),
        (
            lambda: cyclic(count=3, epochs=3),
            "3 snapshots and the last weights need at least 4 epochs, .* has 3",
        ),
        (
            lambda: replace(cyclic(), topology=Topology(groups=2, branch_at=0.5), recipe=Recipe()),
            "2 snapshots of each group and branch_at exclude each other",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()
