"""Rules, screens and reliability in whole runs: what a bad worker can do, and what the run says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hqde.aggregation import (
    AggregationPolicy,
    FractionalRule,
    HeldOutImprovement,
    LearntShares,
    Momentum,
    NormBound,
    Reliability,
    ScaledUpdate,
    SignFlip,
    make_rule,
)
from hqde.backends import LocalBackend
from hqde.data import Iid, SubsetExamples, TensorExamples, make_splits
from hqde.drills import BadWorkers, LabelFlip, ReplayFirst, bad_workers
from hqde.errors import ConfigError, PreconditionError
from hqde.models import ModelSpec, model_spec
from hqde.rounds import Engine, RoundLog
from hqde.testing import Fault, FaultyBackend, small_experiment
from hqde.topology import Topology


def experiment(**changes):
    """Without batch normalisation: a bad worker could make its variances negative, and predictions NaN."""
    model = model_spec("mlp", input_shape=(6,), num_outputs=2, norm="group", options={"hidden": [8]})
    return replace(small_experiment(num_workers=5), model=model, epochs=3, **changes)


def run(experiment, backend=None, **options):
    recorder = RoundLog()
    result = Engine(experiment, backend or LocalBackend(), listener=recorder, **options).run()
    return result, recorder


def regression():
    draws = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 6, generator=draws)
    splits = make_splits("numbers", TensorExamples(inputs, 5.0 + 3.0 * inputs[:, 0]), task="regression")
    model = model_spec("mlp", input_shape=(6,), num_outputs=1, norm="group", options={"hidden": [8]})
    return replace(experiment(policy=LEARNT), splits=splits, model=model, calibrate=False)


def attacked(attack, bad=(4,)):
    return BadWorkers(LocalBackend(), attack, frozenset(bad), num_classes=2)


def same(one, other):
    return all(
        torch.equal(a.vector, b.vector)
        for a, b in zip(one.state.committed, other.state.committed, strict=True)
    )


def test_one_bad_worker_moves_the_mean_and_not_a_robust_rule():
    attack = ScaledUpdate(strength=-200.0)
    honest, _ = run(experiment())
    plain, _ = run(experiment(), attacked(attack))
    robust, recorder = run(experiment(rule=make_rule("multi_krum", num_byzantine=1)), attacked(attack))
    truth = honest.state.committed[0].vector
    far, near = ((r.state.committed[0].vector - truth).norm() for r in (plain, robust))
    assert near < 2.0 < 20.0 < far
    rows = [row for record in recorder.records for row in record.workers]
    assert {row.worker for row in rows if row.status == "left_out"} == {4}
    assert all(row.reason and row.weight == 0.0 for row in rows if row.worker == 4)
    assert all(row.weight == pytest.approx(1 / 4) for row in rows if row.worker != 4)
    assert robust.state.totals.left_out == 3
    assert robust.state.totals.rejected == 0


def test_a_refused_update_counts_against_f():
    rule = make_rule("trimmed_mean", num_byzantine=2)
    faults = (Fault(0, 1, "nan_delta"), Fault(1, 1, "nan_delta"), Fault(2, 1, "nan_delta"))
    result, recorder = run(experiment(rule=rule), FaultyBackend(LocalBackend(), faults))
    # Two rows are left; with f = 2 - 3 < 0 their trimmed mean is their mean.
    plain, _ = run(experiment(), FaultyBackend(LocalBackend(), faults))
    first = recorder.records[0]
    assert [row.status for row in first.workers] == ["rejected"] * 3 + ["admitted"] * 2
    assert result.state.totals.rejected == 3
    assert not same(result, plain)  # the later rounds trim


@pytest.mark.parametrize("policy", ["raise", "skip_round", "keep_previous"])
def test_too_few_updates_for_the_rule_are_what_the_policy_says(policy):
    rule, faults = make_rule("trimmed_mean", num_byzantine=2), (Fault(0, 2, "failure"),)
    given = experiment(rule=rule, policy=AggregationPolicy(on_breach=policy), server=Momentum(0.5, 0.5))
    backend = FaultyBackend(LocalBackend(), faults)
    if policy == "raise":
        with pytest.raises(PreconditionError, match=r"trimmed_mean needs n >= 2f \+ 1: n=4, f=2"):
            run(given, backend)
        return
    kept = []
    engine = Engine(given, backend, listener=RoundLog())
    engine._tell.on_round = lambda record: kept.append(record)
    states = []
    account = engine._account
    engine._account = lambda *a: states.append(account(*a)) or states[-1]
    result = engine.run()
    assert result.state.totals.skipped == 1
    before, after = states[0].committed[0].vector, states[1].committed[0].vector
    if policy == "skip_round":
        assert torch.equal(before, after)
    else:
        cut = len(states[0].server[0]["momentum"])
        expected = before.clone()
        expected[:cut] += 0.5 * 0.5 * states[0].server[0]["momentum"]
        torch.testing.assert_close(after, expected)


def test_shares_too_unequal_for_a_rule_that_counts_them_are_a_breach_too():
    class MostToTheFirst(Iid):
        def assign(self, targets, num_workers, **options):
            shards = super().assign(targets, num_workers, **options)
            return [torch.cat(shards[: num_workers - 2] + shards[:1]), *shards[-(num_workers - 1) :]]

    rule = make_rule("geometric_median", num_byzantine=1)
    given = experiment(rule=rule, partitioner=MostToTheFirst())
    with pytest.raises(PreconditionError, match="bears bad shares of less than 1/2, but the 1 largest of 5"):
        run(given)
    skipped, recorder = run(replace(given, policy=AggregationPolicy(on_breach="skip_round"), epochs=2))
    assert skipped.state.totals.skipped == 2
    assert "equal shards of data" in recorder.events[0].reason


def test_a_fraction_follows_who_is_there():
    rule = FractionalRule("trimmed_mean", 0.4)
    faults = (Fault(0, 2, "failure"), Fault(1, 2, "failure"))
    result, _ = run(experiment(rule=rule), FaultyBackend(LocalBackend(), faults))
    assert result.state.totals.skipped == 0  # f is 2 of five workers, 1 of three


def test_a_group_too_small_for_the_rule_is_refused_before_the_run():
    with pytest.raises(
        PreconditionError, match=r"multi_krum needs n >= 2f \+ 3: n=5, f=2. Use num_byzantine=1"
    ):
        Engine(experiment(rule=make_rule("multi_krum", num_byzantine=2)), LocalBackend()).prepare()


def test_the_norm_bound_refuses_what_is_far_too_long():
    policy = AggregationPolicy(norm_bound=NormBound(factor=3.0))
    result, recorder = run(experiment(policy=policy), attacked(ScaledUpdate(strength=50.0)))
    assert {event.worker_id for event in recorder.events if event.kind == "rejected"} == {4}
    assert all("times what is usual" in e.reason for e in recorder.events if e.kind == "rejected")
    assert len(result.state.norms[0]["medians"]) == 3


def test_an_update_that_makes_the_model_worse_on_held_out_rows_is_refused():
    policy = AggregationPolicy(held_out=HeldOutImprovement(max_increase=0.5))
    _, recorder = run(experiment(policy=policy), attacked(SignFlip(strength=30.0)))
    refused = [event for event in recorder.events if event.kind == "rejected"]
    assert {event.worker_id for event in refused} == {4}
    assert all("raises the held-out loss" in event.reason for event in refused)


LEARNT = AggregationPolicy(learnt_shares=LearntShares())


@pytest.mark.parametrize("bad", [(4,), (2, 3, 4)])
def test_learnt_shares_leave_out_whoever_does_not_help_be_they_most(bad):
    given = experiment(policy=LEARNT)
    _, honest = run(given)
    _, recorder = run(given, attacked(SignFlip(strength=3.0), bad))
    _, fooled = run(experiment(), attacked(SignFlip(strength=3.0), bad))
    last, without = recorder.records[-1], honest.records[-1].validation.loss
    assert {row.worker for row in last.workers if row.status == "left_out"} >= set(bad)
    assert all(row.weight == 0.0 for row in last.workers if row.worker in bad)
    assert all("on the server's held-out rows" in last.workers[worker].reason for worker in bad)
    assert last.validation.loss < 0.8 * fooled.records[-1].validation.loss
    assert last.validation.loss < 1.15 * without


def test_a_slope_is_that_of_the_loss():
    for task in ("classification", "regression"):
        given = experiment(policy=LEARNT) if task == "classification" else regression()
        engine = Engine(given, LocalBackend())
        engine.prepare()
        pool, group = engine._pool, tuple(range(given.num_workers))
        weights = given.initial_weights(0)
        loss, slope = pool.held_out_slope(0, group, weights)
        draws = torch.Generator().manual_seed(0)
        along = torch.randn(len(slope), generator=draws).double()
        step = 1e-4  # ReLUs bend the loss further out
        ends = []
        for sign in (1.0, -1.0):
            vector = weights.vector.clone()
            vector[: len(slope)] += sign * step * along
            ends.append(pool.held_out_slope(0, group, replace(weights, vector=vector))[0])
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope @ along), rel=2e-2, abs=5e-3)
        assert loss == pytest.approx(sum(ends) / 2, rel=1e-2)
        if task == "classification":
            assert loss == pytest.approx(pool.held_out_loss(0, group, weights), rel=1e-5)


class Wide(nn.Sequential):
    """Float32, but for a buffer."""

    def __init__(self):
        super().__init__(nn.Linear(6, 2))
        self.register_buffer("centre", torch.zeros(6, dtype=torch.float64))


def test_learnt_shares_bear_weights_of_several_precisions():
    given = experiment(policy=LEARNT)
    given = replace(given, model=ModelSpec("test_robust_rounds:Wide", {}, Wide), dropout_rate=None)
    _, recorder = run(given, attacked(SignFlip(strength=3.0)))
    assert recorder.records[-1].workers[4].weight == 0.0


def test_learnt_shares_need_the_mean_and_rows_to_learn_from():
    for name, counts in (("multi_krum", "heads"), ("geometric_median", "weight")):
        with pytest.raises(ConfigError, match=f"goes with the rule 'mean': '{name}' counts {counts}"):
            experiment(policy=LEARNT, rule=make_rule(name, num_byzantine=1))
    given = experiment()
    none = replace(given.splits, validation=SubsetExamples(given.splits.validation, torch.arange(0)))
    with pytest.raises(ConfigError, match="judging by held-out loss"):
        replace(given, splits=none, calibrate=False, policy=LEARNT)


def test_reliability_is_remembered_excludes_and_survives_a_resume(tmp_path):
    from hqde.checkpoints import CheckpointStore

    policy = AggregationPolicy(reliability=Reliability(prior_good=1.0, prior_bad=0.5), use="exclude")
    given = replace(experiment(policy=policy), epochs=6)
    attack = ScaledUpdate(strength=-40.0)
    whole, recorder = run(given, attacked(attack), store=CheckpointStore(tmp_path / "whole"))
    scores = policy.reliability.scores(whole.state.reliability)
    assert scores.argmin() == 4
    assert float(scores[4]) < 0.5 < float(scores[:4].min())
    last = recorder.records[-1].workers[4]
    assert (last.status, last.reason[:18]) == ("left_out", "its reliability is")
    assert last.outliers["mad"] > max(row.outliers["mad"] for row in recorder.records[-1].workers[:4])

    class Stop(Exception):
        pass

    def stop(record):
        if record.round == 4:
            raise Stop

    cut = RoundLog()
    cut.on_round = stop
    store = CheckpointStore(tmp_path / "cut")
    with pytest.raises(Stop):
        Engine(given, attacked(attack), listener=cut, store=store).run()
    resumed = Engine(given, attacked(attack), store=store).run(resume=True)
    assert same(resumed, whole)
    assert torch.equal(resumed.state.reliability["bad"], whole.state.reliability["bad"])


def test_nobody_is_left_out_when_all_are_honest():
    policy = AggregationPolicy(norm_bound=NormBound(), reliability=Reliability(), use="exclude")
    watched, recorder = run(experiment(policy=policy))
    plain, _ = run(experiment())
    assert same(watched, plain)
    assert {row.status for record in recorder.records for row in record.workers} == {"admitted"}


def test_flipped_labels_are_the_bad_workers_alone():
    flipped, _ = run(experiment(), attacked(LabelFlip()))
    honest, _ = run(experiment())
    nobody, _ = run(experiment(), attacked(LabelFlip(), bad=()))
    assert same(nobody, honest)
    assert not same(flipped, honest)


def test_a_member_that_stands_out_on_held_out_rows_is_left_out_of_the_ensemble():
    given = experiment(topology=Topology.independent(), drop_outliers=True)
    poisoned, recorder = run(replace(given, epochs=8), attacked(LabelFlip()))
    assert poisoned.ensemble.member_ids == (0, 1, 2, 3)
    [event] = [event for event in recorder.events if event.kind == "dropped"]
    assert event.reason.startswith("member 4 is left out: its held-out loss is")
    honest, recorder = run(replace(given, epochs=8))
    assert len(honest.ensemble) == 5
    assert recorder.events == []


def test_a_replayed_update_is_the_first_one():
    backend = attacked(ReplayFirst())
    run(experiment(), backend)
    assert set(backend._first) == {4}


def test_bad_workers_leave_somebody_honest():
    assert bad_workers(((0, 1), (2, 3)), 1) == {1, 3}
    with pytest.raises(PreconditionError, match="2 bad workers in groups of 2 leave nobody honest"):
        bad_workers(((0, 1), (2, 3)), 2)


@pytest.mark.parametrize("changes", [{"on_breach": "shrug"}, {"use": "love"}])
def test_unknown_choices_are_refused(changes):
    with pytest.raises(ConfigError, match="must be one of"):
        AggregationPolicy(**changes)
