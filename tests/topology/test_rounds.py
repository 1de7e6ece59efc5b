"""The plan of a run: which rounds, with whom, over which batches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.topology import RoundPlan, Topology, branch_epoch, plan_rounds


@dataclass(frozen=True)
class Run:
    """A topology that fits its workers and its length."""

    topology: Topology
    num_workers: int
    epochs: int
    batches: int
    trunk_batches: int | None

    def plan(self) -> tuple[RoundPlan, ...]:
        return plan_rounds(
            self.topology,
            self.num_workers,
            epochs=self.epochs,
            batches_per_epoch=self.batches,
            trunk_batches_per_epoch=self.trunk_batches,
        )

    def in_trunk(self, epoch: int) -> bool:
        branch = branch_epoch(self.topology, self.epochs)
        return branch is not None and epoch < branch

    def batches_of(self, epoch: int) -> int:
        return self.trunk_batches if self.in_trunk(epoch) and self.trunk_batches else self.batches


@st.composite
def runs(draw: st.DrawFn) -> Run:
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    epochs = draw(st.integers(1, 12))
    branch_at = trunk_workers = trunk_batches = None
    if groups > 1 and epochs > 1 and draw(st.booleans()):
        branch_at = draw(st.integers(1, epochs - 1)) / epochs
        trunk_workers = draw(st.none() | st.integers(1, groups * size))
        trunk_batches = draw(st.none() | st.integers(1, 9))
    topology = Topology(
        groups=groups,
        branch_at=branch_at,
        trunk_workers=trunk_workers,
        global_every=draw(st.integers(0, 4)),
        global_until=draw(st.sampled_from([0.125, 0.25, 0.5, 0.75])),
        every=draw(st.just("epoch") | st.integers(1, 12)),
    )
    return Run(topology, groups * size, epochs, draw(st.integers(1, 9)), trunk_batches)


@given(run=runs())
def test_progress_tiles_the_run_without_gap_or_overlap(run):
    plans = run.plan()
    assert plans[0].progress[0] == 0.0
    assert plans[-1].progress[1] == 1.0
    for before, after in itertools.pairwise(plans):
        assert before.progress[1] == after.progress[0]
        assert before.index + 1 == after.index
    assert all(first < last for first, last in (p.progress for p in plans))
    assert plans[0].index == 1


@given(run=runs())
def test_every_worker_is_in_exactly_one_group_in_each_round(run):
    for p in run.plan():
        active = run.num_workers
        if run.in_trunk(p.epoch) and run.topology.trunk_workers:
            active = run.topology.trunk_workers
        assert sorted(worker for group in p.groups for worker in group) == list(range(active))
        assert all(group for group in p.groups)


@given(run=runs())
def test_the_rounds_of_an_epoch_cover_each_batch_exactly_once(run):
    plans = run.plan()
    for epoch in range(1, run.epochs + 1):
        covered: list[int] = []
        batches = run.batches_of(epoch)
        own = [p for p in plans if p.epoch == epoch]
        for p in own:
            last = None if p.num_batches is None else p.first_batch + p.num_batches
            covered += list(range(batches))[p.first_batch : last]
        assert covered == list(range(batches))
        assert [p.ends_epoch for p in own] == [False] * (len(own) - 1) + [True]
        # a longer epoch (another worker's larger shard) would lose nothing either
        assert own[-1].num_batches is None
        if run.topology.every == "epoch":
            assert len(own) == 1
        else:
            assert all(p.num_batches == run.topology.every for p in own[:-1])


@given(run=runs())
def test_progress_counts_batches(run):
    for p in run.plan():
        batches = run.batches_of(p.epoch)
        done = (p.epoch - 1) * batches + p.first_batch
        length = batches - p.first_batch if p.num_batches is None else p.num_batches
        assert p.progress[0] * run.epochs * batches == pytest.approx(done, abs=1e-9)
        assert p.progress[1] * run.epochs * batches == pytest.approx(done + length, abs=1e-9)


@given(run=runs())
def test_first_the_trunk_then_the_topology_s_groups(run):
    apart = run.topology.groups_of(run.num_workers)
    trunk = (tuple(range(run.topology.num_trunk_workers(run.num_workers))),)
    plans = run.plan()
    assert plans[-1].groups == apart
    for p in plans:
        assert p.groups == (trunk if run.in_trunk(p.epoch) else apart)
    branch = branch_epoch(run.topology, run.epochs)
    assert [(p.epoch, p.first_batch) for p in plans if p.branches] == (
        [] if branch is None else [(branch, 0)]
    )


@given(run=runs())
def test_global_rounds_end_epochs_that_are_due_within_the_allowed_part_and_join_several_groups(run):
    topology = run.topology
    for p in run.plan():
        due = (
            topology.global_every > 0
            and p.ends_epoch
            and p.epoch % topology.global_every == 0
            and p.progress[1] <= topology.global_until + 1e-12
            and len(p.groups) > 1
        )
        alone = all(len(group) == 1 for group in p.groups)
        assert p.scope == ("global" if due else "none" if alone else "group")


@given(run=runs())
def test_members_have_the_end_of_the_run_to_themselves(run):
    plans = run.plan()
    assert len(plans[-1].groups) == 1 or plans[-1].scope != "global"


def test_a_plan_by_hand():
    topology = Topology(groups=2, branch_at=0.5, global_every=3, every=2)
    plans = plan_rounds(topology, 4, epochs=4, batches_per_epoch=3)
    one, two = ((0, 1, 2, 3),), ((0, 1), (2, 3))
    assert [(p.epoch, p.first_batch, p.num_batches, p.groups, p.scope, p.branches) for p in plans] == [
        (1, 0, 2, one, "group", False),
        (1, 2, None, one, "group", False),
        (2, 0, 2, one, "group", False),
        (2, 2, None, one, "group", False),
        (3, 0, 2, two, "group", True),
        (3, 2, None, two, "global", False),  # epoch 3 of 4 is the last within three quarters
        (4, 0, 2, two, "group", False),
        (4, 2, None, two, "group", False),
    ]
    assert [round(12 * p.progress[1]) for p in plans] == [2, 3, 5, 6, 8, 9, 11, 12]


def test_a_trunk_of_one_worker_is_averaged_with_nobody():
    topology = Topology(groups=2, branch_at=0.5, trunk_workers=1, global_every=1)
    plans = plan_rounds(topology, 2, epochs=2, batches_per_epoch=3, trunk_batches_per_epoch=6)
    assert [(p.groups, p.scope, p.progress) for p in plans] == [
        (((0,),), "none", (0.0, 0.5)),
        (((0,), (1,)), "none", (0.5, 1.0)),
    ]


def test_independent_workers_are_never_averaged_and_one_group_always():
    alone = plan_rounds(Topology.independent(), 3, epochs=2, batches_per_epoch=4)
    assert [p.scope for p in alone] == ["none", "none"]
    together = plan_rounds(Topology(groups=1, global_every=1), 3, epochs=2, batches_per_epoch=4)
    assert [p.scope for p in together] == ["group", "group"]


@pytest.mark.parametrize(
    ("branch_at", "epochs", "expected"),
    [(0.5, 2, 2), (0.5, 20, 11), (0.25, 20, 6), (0.75, 4, 4), (0.3, 5, 3)],
)
def test_the_branch_comes_at_the_named_fraction(branch_at, epochs, expected):
    assert branch_epoch(Topology(branch_at=branch_at), epochs) == expected


def test_without_branch_at_there_is_no_branch():
    assert branch_epoch(Topology(groups=2), 5) is None


@pytest.mark.parametrize(
    ("branch_at", "epochs", "sentence"),
    [
        (0.5, 1, "branch_at=0.5 of 1 epochs leaves 0 epochs together and 1 apart"),
        (0.1, 4, "branch_at=0.1 of 4 epochs leaves 0 epochs together and 4 apart"),
        (0.95, 4, "branch_at=0.95 of 4 epochs leaves 4 epochs together and 0 apart"),
    ],
)
def test_a_run_too_short_for_both_phases_is_refused(branch_at, epochs, sentence):
    topology = Topology(groups=2, branch_at=branch_at)
    with pytest.raises(ConfigError, match=sentence):
        branch_epoch(topology, epochs)
    with pytest.raises(ConfigError, match=sentence):
        plan_rounds(topology, 4, epochs=epochs, batches_per_epoch=3)


@pytest.mark.parametrize(
    ("workers", "epochs", "batches", "sentence"),
    [
        (4, 0, 3, "epochs must be at least 1, got 0"),
        (4, -1, 3, "epochs must be at least 1, got -1"),
        (4, 1, 0, "an epoch must have at least 1 batch, got 0"),
        (3, 1, 3, "2 groups do not divide 3 workers"),
    ],
)
def test_plans_that_do_not_fit_are_refused(workers, epochs, batches, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan_rounds(Topology(groups=2), workers, epochs=epochs, batches_per_epoch=batches)


def test_a_trunk_without_batches_or_of_too_many_workers_is_refused():
    topology = Topology(groups=2, branch_at=0.5, trunk_workers=3)
    with pytest.raises(ConfigError, match="at least 1 batch, got 0"):
        plan_rounds(topology, 4, epochs=2, batches_per_epoch=3, trunk_batches_per_epoch=0)
    with pytest.raises(ConfigError, match="trunk_workers=3 is more than the 2 workers"):
        plan_rounds(topology, 2, epochs=2, batches_per_epoch=3)
