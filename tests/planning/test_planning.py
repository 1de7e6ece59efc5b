"""Plans: the quickest sound way is taken, times are foretold, and what is broken is said to be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from hqde.backends import LocalBackend
from hqde.data import Iid
from hqde.errors import OutOfMemoryError, WorkerError
from hqde.models import ModelSpec
from hqde.planning import Candidate, PlanCache, Probe, RunPlanner, candidates_for, probe
from hqde.planning import cache as caching
from hqde.planning import plan as planning
from hqde.planning.cache import plan_key
from hqde.planning.probing import epoch_seconds
from hqde.rounds import GroupSettings, Privacy
from hqde.testing import small_experiment
from hqde.topology import Topology
from hqde.training import Stack

SLOW = Candidate("local", 1, 2, "fp32")
QUICK = Candidate("local", 2, 1, "fp32")


class Fp32Only(nn.Module):
    """Cannot compute in bfloat16."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        out = self.layer(x)
        if out.dtype != torch.float32:
            raise RuntimeError("this model wants float32")
        return out


class Unfit(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        raise RuntimeError("never works")


def experiment(model=None, **changes):
    found = small_experiment(num_workers=4)
    if model is not None:
        found = replace(found, model=ModelSpec(model.__name__, {}, factory=model), dropout_rate=None)
    return replace(found, **changes)


def planner_of(monkeypatch, *probes, cache=None):
    """A planner whose candidates show what they are told to."""
    told = {found.candidate: found for found in probes}
    monkeypatch.setattr(planning, "candidates_for", lambda *_, **__: tuple(told))
    monkeypatch.setattr(planning, "probe", lambda candidate, _: told[candidate])
    monkeypatch.setattr(planning, "REHEARSED_S", 0.0)
    return RunPlanner(cache)


def test_ways_of_a_machine_with_cores_and_without():
    ways = candidates_for(experiment(), precisions=("bf16-mixed",), cores=4)
    assert {(way.lanes, way.precision) for way in ways} >= {(1, "fp32"), (4, "fp32"), (4, "bf16-mixed")}
    assert [(way.backend, way.lanes) for way in candidates_for(experiment(), cores=1)] == [
        ("local", 1),
        ("vectorised", 1),
    ]
    assert [way.backend for way in candidates_for(replace(experiment(), num_workers=1), cores=4)] == ["local"]
    assert len(set(ways)) == len(ways)


def test_a_probe_measures_and_changes_nothing():
    setting = experiment()
    weights = setting.initial_weights(0).vector
    found = probe(QUICK, setting)
    assert found.problem == ""
    assert found.samples_per_s > 0
    assert found.predicted_rows_per_s > 0
    assert len(found.losses) == 2
    # weights, and what AdamW keeps: two moments and a step per tensor
    assert found.state_bytes > 3 * setting.initial_weights(0).vector.nbytes * 0.8
    assert torch.equal(weights, setting.initial_weights(0).vector)
    assert Probe.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_members_of_groups_with_models_of_their_own_can_be_probed():
    setting = experiment(topology=Topology(groups=2))
    other = replace(setting.model, options={**setting.model.options, "hidden": [3]})
    setting = replace(setting, groups={1: GroupSettings(model=other)})
    assert setting.group_size == 2
    found = probe(QUICK, setting)
    assert found.problem == ""
    assert found.predicted_rows_per_s > 0


def test_the_quickest_is_taken(monkeypatch):
    planner = planner_of(
        monkeypatch, Probe(SLOW, 100.0, None, (0.7,)), Probe(QUICK, 300.0, None, (0.7000001, 0.7))
    )
    plan = planner.plan(experiment())
    assert plan.chosen == QUICK
    rows = len(experiment().splits.train)
    assert plan.seconds == pytest.approx((2 * 4 * rows / 100, 2 * 4 * rows / 300))
    assert plan.predicted_s == plan.seconds[1]


def test_those_near_the_quickest_are_tried_again_and_the_one_in_the_middle_counts(monkeypatch):
    far = Candidate("local", 1, 1, "fp32")
    rates = {SLOW: [100.0, 100.0, 99.0], QUICK: [90.0, 140.0, 120.0], far: [50.0]}
    planner = planner_of(monkeypatch, *(Probe(way, 1.0, None, (0.7,)) for way in rates))
    turns = []

    def tried(candidate, _):
        turns.append(candidate)
        rate = rates[candidate][turns.count(candidate) - 1]
        return Probe(candidate, rate, None, (0.7,), rss_bytes=len(turns))

    monkeypatch.setattr(planning, "probe", tried)
    plan = planner.plan(experiment())
    assert turns == [SLOW, QUICK, far, SLOW, QUICK, SLOW, QUICK]
    assert [found.samples_per_s for found in plan.probes] == [100.0, 120.0, 50.0]
    assert plan.probes[1].rss_bytes == 7, "the most that any of them took"
    assert plan.chosen == QUICK


def test_one_that_fails_when_it_is_tried_again_is_not_taken(monkeypatch):
    planner = planner_of(monkeypatch, Probe(SLOW, 1.0, None, (0.7,)), Probe(QUICK, 1.0, None, (0.7,)))
    turns = []

    def tried(candidate, _):
        turns.append(candidate)
        if candidate == QUICK and turns.count(QUICK) == 2:
            return Probe(QUICK, None, problem="out of memory: MemoryError")
        return Probe(candidate, 110.0 if candidate == QUICK else 100.0, None, (0.7,))

    monkeypatch.setattr(planning, "probe", tried)
    plan = planner.plan(experiment())
    assert plan.chosen == SLOW
    assert plan.notes == (f"{QUICK.name}: out of memory: MemoryError; {SLOW.name} is taken",)


def test_short_epochs_are_trained_whole_and_what_rounds_take_beside_steps_counts(monkeypatch):
    rows = len(experiment().splits.train)
    quick = Probe(QUICK, 40.0 * rows, None, (0.7,))
    planner = planner_of(monkeypatch, quick)
    monkeypatch.setattr(planning, "REHEARSED_S", 10.0)
    asked = []

    def took(candidate, _, epochs):
        asked.append((candidate, epochs))
        return [5.0, 0.1 + 0.06]  # two workers in a row in each lane, 0.05 s each

    monkeypatch.setattr(planning, "epoch_seconds", took)
    plan = planner.plan(experiment(epochs=2))
    assert asked == [(QUICK, 2)]
    assert plan.probes[0].round_s == pytest.approx(0.03)
    assert plan.predicted_s == pytest.approx(2 * 0.16)


def test_epochs_are_timed_and_no_more_trained_than_that(monkeypatch):
    closed = []
    close = LocalBackend.close
    monkeypatch.setattr(LocalBackend, "close", lambda self: (closed.append(1), close(self)))
    setting = experiment(epochs=4)
    trained = []
    train = LocalBackend.train
    monkeypatch.setattr(
        LocalBackend,
        "train",
        lambda self, orders, **named: (trained.append(orders[0].epoch), train(self, orders, **named))[1],
    )
    seconds = epoch_seconds(QUICK, setting, 3)
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert trained == [1, 2, 3]
    assert closed


def test_a_run_that_fails_in_its_first_epochs_is_said_to(monkeypatch):
    def fails(*_):
        raise WorkerError("all 4 workers failed")

    planner = planner_of(monkeypatch, Probe(SLOW, 1e9, None, (0.7,)))
    monkeypatch.setattr(planning, "REHEARSED_S", 10.0)
    monkeypatch.setattr(planning, "epoch_seconds", fails)
    with pytest.raises(WorkerError, match="no way to train this was found: all 4 workers failed"):
        planner.plan(experiment())


def test_a_private_run_takes_the_time_of_those_who_take_part(monkeypatch):
    rows = experiment().splits.train
    setting = experiment(
        partitioner=Iid(), privacy=Privacy(clip_norm=1.0, sample_rate=0.25, delta=1e-3), epochs=2
    )
    alone = Candidate("local", 4, 1, "fp32")
    plan = planner_of(monkeypatch, Probe(SLOW, 100.0, None, (0.7,)), Probe(alone, 400.0, None, (0.7,))).plan(
        setting
    )
    one_by_one = 2 * len(rows) / 100
    assert plan.seconds[0] == pytest.approx(0.25 * one_by_one, rel=0.1)
    somebody = 1 - 0.75**4
    assert plan.seconds[1] == pytest.approx(somebody * one_by_one / 4, rel=0.1)


def test_one_that_computes_something_else_is_not_taken(monkeypatch):
    planner = planner_of(
        monkeypatch, Probe(SLOW, 100.0, None, (0.7,)), Probe(QUICK, 300.0, None, (0.71, 0.7))
    )
    plan = planner.plan(experiment())
    assert plan.chosen == SLOW
    assert "loss after the same steps is 0.71" in plan.notes[0]
    assert SLOW.name in plan.notes[0]


def test_one_that_runs_out_of_memory_is_not_taken(monkeypatch):
    def started(self, specs, examples):
        if self.seating.lanes > 1 or len(specs) > 1:
            raise MemoryError("cannot allocate 9 GiB")
        start(self, specs, examples)

    start = LocalBackend.start
    monkeypatch.setattr(LocalBackend, "start", started)
    found = [probe(way, experiment()) for way in (SLOW, QUICK)]
    assert found[0].problem == ""
    assert found[1].problem == "out of memory: MemoryError: cannot allocate 9 GiB"


def test_a_stack_that_runs_out_of_memory_becomes_a_smaller_one(monkeypatch, tmp_path):
    def short(stack, orders, **named):
        if len(orders) > 2:
            raise OutOfMemoryError(f"{len(orders)} are too many")
        return train_round(stack, orders, **named)

    train_round = Stack.train_round
    monkeypatch.setattr(Stack, "train_round", short)
    stacked = Candidate("vectorised", 1, 1, "fp32")
    found = probe(stacked, experiment())
    assert found.problem == ""
    assert found.samples_per_s > 0
    assert found.candidate == replace(stacked, stacked=2)
    assert found.candidate.name == "vectorised, 1 lane of 1 thread, stacks of 2, fp32"
    assert found.candidate.settings()["run.stacked"] == 2
    assert found.candidate.make_backend().at_a_time == 2
    assert found.note == f"{stacked.name} ran out of memory; {found.candidate.name} does not"
    assert Probe.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    monkeypatch.setattr(planning, "candidates_for", lambda *_, **__: (SLOW, stacked))
    told = {SLOW: Probe(SLOW, 1.0, None, (found.losses[0],)), stacked: found}
    monkeypatch.setattr(planning, "probe", lambda candidate, _: told[candidate])
    plan = RunPlanner(PlanCache(tmp_path / "plans.json")).plan(experiment())
    assert plan.chosen == found.candidate
    assert plan.notes == (found.note,)
    assert RunPlanner(PlanCache(tmp_path / "plans.json")).plan(experiment()).notes == plan.notes


def test_a_stack_that_never_fits_is_given_up(monkeypatch):
    def short(stack, orders, **_):
        raise OutOfMemoryError(f"{len(orders)} are too many")

    monkeypatch.setattr(Stack, "train_round", short)
    found = probe(Candidate("vectorised", 1, 1, "fp32"), experiment())
    assert found.samples_per_s is None
    assert found.problem.startswith("out of memory: OutOfMemoryError: 1 are too many, and there is nothing")


def test_a_model_that_bears_no_bfloat16_is_trained_in_float32():
    plan = RunPlanner(precisions=("bf16-mixed",)).plan(experiment(Fp32Only))
    assert plan.chosen.precision == "fp32"
    assert any("bf16-mixed: RuntimeError: this model wants float32" in note for note in plan.notes)


def test_a_model_that_never_works_is_an_error():
    with pytest.raises(WorkerError, match="no way to train this was found: RuntimeError: never works"):
        RunPlanner().plan(experiment(Unfit))


def test_what_was_found_out_is_kept(tmp_path, monkeypatch):
    cache = PlanCache(tmp_path / "deep" / "plans.json")
    first = RunPlanner(cache).plan(experiment())
    monkeypatch.setattr(planning, "probe", lambda *_: pytest.fail("it was known"))
    again = RunPlanner(PlanCache(cache.path)).plan(experiment())
    assert (first.cached, again.cached) == (False, True)
    assert again.probes == first.probes
    assert [file.name for file in cache.path.parent.iterdir()] == ["plans.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99, "plans": {}}', '{"format": 1}', "KEY"])
def test_a_broken_file_is_said_to_be_and_replaced(tmp_path, text):
    file = tmp_path / "plans.json"
    key = plan_key(experiment(), ())
    file.write_text(text if text != "KEY" else json.dumps({"format": 1, "plans": {key: [{"candidate": 3}]}}))
    plan = RunPlanner(PlanCache(file)).plan(experiment())
    assert not plan.cached
    assert "is broken" in plan.notes[0]
    assert RunPlanner(PlanCache(file)).plan(experiment()).cached


def test_a_file_that_cannot_be_written_is_said_to_be(tmp_path):
    (tmp_path / "file").write_text("")
    plan = RunPlanner(PlanCache(tmp_path / "file" / "plans.json")).plan(experiment())
    assert "cannot be written" in plan.notes[0]


def test_keys_tell_apart_what_matters():
    plain = experiment()
    others = [
        replace(plain, num_workers=8),
        replace(plain, recipe=replace(plain.recipe, batch_size=8)),
        replace(plain, recipe=replace(plain.recipe, precision="bf16-mixed")),
        small_experiment(num_workers=4, seed=1),
    ]
    keys = [plan_key(setting) for setting in (plain, *others)]
    assert len(set(keys)) == len(keys) - 1, "only the seed does not matter"


def test_another_version_of_hqde_plans_anew(monkeypatch):
    before = plan_key(experiment())
    assert plan_key(experiment()) == before
    monkeypatch.setattr(caching, "version", lambda name: f"{name} of tomorrow")
    assert plan_key(experiment()) != before


def test_makespan_of_more_tasks_than_lanes():
    assert planning.makespan([5, 1, 1, 1], 2) == 5
    assert planning.makespan([2, 2, 2], 2) == 4
    assert planning.makespan([4], 8) == 4
