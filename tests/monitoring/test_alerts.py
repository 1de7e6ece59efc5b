"""Thresholds, durations, hysteresis; and each default rule: provoked once, and quiet in a normal run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.monitoring import (
    DEFAULT_RULES,
    AlertRule,
    AlertState,
    RoundSignals,
    Signal,
    Watch,
    judge,
    make_rules,
    sample_signals,
)

GIB = 2**30


def changes(rule, readings):
    """``(time, value)`` pairs to what changed at each."""
    state, found = AlertState(), []
    for now, value in readings:
        state, change = judge(rule, value, float(now), state)
        found.append(change)
    return found


def test_duration_counts_from_the_first_reading_beyond():
    rule = AlertRule("memory_percent", above=90.0, for_s=10.0)
    assert changes(rule, [(0, 95), (5, 95), (9.9, 95), (10, 95)]) == [None, None, None, "fired"]
    assert changes(rule, [(0, 95), (5, 89), (10, 95), (19, 95), (20, 95)])[-1] == "fired"
    assert changes(rule, [(0, 95), (5, 89), (10, 95), (19, 95)])[-1] is None


def test_readings_must_come_in_a_row():
    rule = AlertRule("member_difference", below=0.1, for_readings=3)
    assert changes(rule, [(0, 0), (1, 0), (2, 0.5), (3, 0), (4, 0), (5, 0)])[-2:] == [None, "fired"]


def test_unknown_readings_change_nothing():
    rule = AlertRule("memory_percent", above=90.0, for_readings=2)
    assert changes(rule, [(0, 95), (1, None), (2, float("nan")), (3, 95)]) == [None, None, None, "fired"]


@given(st.lists(st.floats(0, 100), max_size=60))
def test_firing_and_clearing_alternate_whatever_comes(values):
    rule = AlertRule("cpu_percent", above=60.0, clear=40.0)
    told = [change for change in changes(rule, enumerate(values)) if change]
    assert told[::2] == ["fired"] * len(told[::2])
    assert told[1::2] == ["cleared"] * len(told[1::2])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"signal": "memory"}, "unknown signal 'memory'"),
        ({"signal": "cpu_percent"}, "either 'above' or 'below'"),
        ({"signal": "cpu_percent", "above": 1.0, "below": 2.0}, "either 'above' or 'below'"),
        ({"signal": "cpu_percent", "above": 90.0, "clear": 95.0}, "cannot clear at 95"),
        ({"signal": "cpu_percent", "above": 90.0, "for_s": -1.0}, "for_s >= 0"),
        ({"signal": "cpu_percent", "above": float("nan")}, "finite"),
        ({"signal": "cpu_percent", "above": 90.0, "message": "{who}"}, "may hold"),
    ],
)
def test_rules_that_make_no_sense_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        AlertRule(**given)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"memory": {"abov": 3.0}}, "did you mean 'above'"),
        ({"memory": {"above": "3"}}, "must be a number"),
        ({"memory": 3}, "must be a table"),
        ({"mine": {"above": 3.0}}, "needs a signal"),
    ],
)
def test_tables_that_make_no_sense_are_refused(tables, words):
    with pytest.raises(ConfigError, match=words):
        make_rules(tables)


def test_a_rule_of_ones_own():
    rules = make_rules({"load": {"signal": "load_average", "above": 8}})
    assert rules["load"].threshold == 8.0
    assert set(rules) == {*DEFAULT_RULES, "load"}


def worker(index, *, loss=0.5, seconds=1.0, status="admitted", samples=64):
    return {"worker": index, "loss": loss, "seconds": seconds, "status": status, "samples": samples}


def round_of(workers, *, accuracy=(0.9, 0.9), disagreement=0.1, effective=1.3, scope="none"):
    members = [{"member": i, "nll": 0.3, "accuracy": a} for i, a in enumerate(accuracy)]
    validation = {
        "loss": 0.3,
        "members": members,
        "disagreement": disagreement,
        "effective_members": effective,
    }
    return {"workers": workers, "scope": scope, "validation": validation}


def told(records):
    """Names of the default rules that fire over some rounds, ten seconds each."""
    watch, signals = Watch(DEFAULT_RULES), RoundSignals()
    alerts = [a for i, r in enumerate(records) for a in watch.judge(signals.read(r), now=10.0 * i)]
    return [(alert.name, alert.worker) for alert in alerts if alert.change == "fired"]


NORMAL = [round_of([worker(i, loss=1 / (r + 1)) for i in range(4)]) for r in range(10)]


def test_a_normal_run_is_quiet():
    assert told(NORMAL) == []


def test_a_straggler_is_told_of_after_three_rounds():
    slow = [worker(0), worker(1), worker(2), worker(3, seconds=3.0)]
    assert told([round_of(slow)] * 2) == []
    assert told([round_of(slow)] * 3) == [("straggler", 3)]


def test_another_worker_that_is_slow_in_each_round_is_no_straggler():
    rounds = [[worker(i, seconds=3.0 if i == r % 4 else 1.0) for i in range(4)] for r in range(8)]
    assert told([round_of(workers) for workers in rounds]) == []


def test_milliseconds_make_no_straggler():
    slow = [worker(0, seconds=0.01), worker(1, seconds=0.01), worker(2, seconds=0.05)]
    assert told([round_of(slow)] * 5) == []


def test_a_loss_that_is_not_finite_is_told_of_at_once():
    assert told([round_of([worker(0), worker(1, loss=None, status="rejected")])]) == [("loss", 1)]
    lost = worker(1, loss=None, status="failed", samples=0)
    assert told([round_of([worker(0), lost])]) == []


def test_many_rejections_are_told_of():
    bad = [worker(0), worker(1), worker(2), worker(3, status="rejected")]
    assert told([round_of(bad)] * 3) == [("rejections", None)]
    assert told([*NORMAL[:4], round_of(bad)]) == []


def test_members_that_become_one_model_are_told_of():
    apart = [round_of([worker(0)], effective=1.3)] * 3
    alike = [round_of([worker(0)], effective=1.001, disagreement=0.0)] * 3
    assert told([*apart, *alike]) == [("diversity", None)]
    assert told([*apart, *alike[:2]]) == []


def test_members_that_were_never_apart_are_told_of():
    assert told([round_of([worker(0)], effective=1.0, disagreement=0.0)] * 3) == [("diversity", None)]


def test_members_that_get_better_and_agree_more_are_a_normal_run():
    """The figures of four members on the digits: they agree more and more because they are right."""
    effective = [1.052, 1.077, 1.057, 1.043, 1.042, 1.041, 1.042, 1.033, 1.034, 1.033, 1.031, 1.033]
    disagreement = [0.13, 0.054, 0.05, 0.031, 0.028, 0.021, 0.015, 0.01, 0.015, 0.021, 0.02, 0.017]
    errors = [0.109, 0.061, 0.042, 0.03, 0.028, 0.021, 0.023, 0.019, 0.021, 0.021, 0.019, 0.017]
    rounds = [
        round_of([worker(0)], accuracy=(1 - e,) * 4, disagreement=d, effective=v)
        for v, d, e in zip(effective, disagreement, errors, strict=True)
    ]
    assert told(rounds) == []


def test_members_that_are_right_about_everything_may_agree():
    apart = [round_of([worker(0)], effective=1.3)] * 3
    right = [round_of([worker(0)], effective=1.001, disagreement=0.0, accuracy=(1.0, 1.0))] * 5
    assert told([*apart, *right]) == []


def test_members_that_were_averaged_on_purpose_are_one_model_and_nobody_minds():
    assert told([round_of([worker(0)], effective=1.0, disagreement=0.0, scope="global")] * 5) == []


def machine(sample, seconds, *, training_on_gpu=False, **figures):
    watch = Watch(DEFAULT_RULES)
    found = []
    for now in range(seconds):
        signals = sample_signals(sample(float(now), **figures), training_on_gpu=training_on_gpu)
        found += [alert.name for alert in watch.judge(signals, now=float(now))]
    return found


def test_full_memory_is_told_of_after_ten_seconds(sample):
    assert machine(sample, 10, memory_percent=97.0) == []
    assert machine(sample, 12, memory_percent=97.0) == ["memory"]
    assert machine(sample, 60, memory_percent=90.0) == []


def test_a_full_disk_is_told_of_at_once(sample):
    assert machine(sample, 1, disk_free_bytes=GIB // 2) == ["disk"]
    assert machine(sample, 1, disk_free_bytes=10 * GIB) == []


def test_an_idle_gpu_is_told_of_after_a_minute_of_training_on_it(sample, gpu):
    idle = (gpu(utilization=2.0),)
    assert machine(sample, 62, gpus=idle, training_on_gpu=True) == ["gpu_idle"]
    assert machine(sample, 62, gpus=idle, training_on_gpu=False) == []
    assert machine(sample, 62, gpus=(gpu(utilization=80.0), *idle), training_on_gpu=True) == []


def test_every_default_rule_is_provoked_above():
    assert set(DEFAULT_RULES) == {
        "memory", "disk", "gpu_idle", "straggler", "loss", "diversity", "rejections",
    }  # fmt: skip


def test_messages_name_the_figure_and_the_worker():
    watch = Watch(DEFAULT_RULES)
    [alert] = watch.judge({"straggler_ratio": Signal(3.14159, 2, "worker 2")}, now=0.0)
    assert alert.message.startswith("worker 2 takes 3.14 times as long as the median worker")
    [alert] = watch.judge({"straggler_ratio": Signal(1.0, 1, "worker 1")}, now=1.0)
    assert (alert.change, alert.message) == ("cleared", "straggler_ratio is back at 1")
