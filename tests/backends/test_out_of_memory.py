"""Want of memory: fewer workers at a time, the same results, and one sentence about it."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace

import pytest
import torch

from hqde.backends import Failure, LocalBackend, VectorisedBackend
from hqde.errors import HqdeError, OutOfMemoryError
from hqde.rounds import Engine, RoundLog
from hqde.testing import orders_of, small_experiment
from hqde.training import Recipe, is_out_of_memory, stacking, vmapped
from hqde.training.worker import Worker

CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(CPU),
    MemoryError("no room"),
]


class Short:
    """Memory for so many workers at a time: a step of more makes its changes, and then raises.

    Args:
        fits: workers that there is memory for.
        error: what is raised.
        from_round: when memory gets short.
        step: of the round, from 0, that runs out of memory.
    """

    def __init__(self, monkeypatch, fits, error=ERRORS[1], *, from_round=1, step=1):
        self.refused: list[int] = []
        update = stacking._Round._update

        def short(run, at, group, state, inputs, targets):
            update(run, at, group, state, inputs, targets)
            if at == step and run._orders[0].round_index >= from_round and len(group) > fits:
                self.refused.append(len(group))
                raise type(error)(*error.args)  # a new one: what was raised keeps the step's tensors

        monkeypatch.setattr(stacking._Round, "_update", short)


def experiment(num_workers=4, **changes):
    recipe = Recipe(batch_size=16, learning_rate=0.05, optimizer="sgd")
    return replace(small_experiment(num_workers=num_workers), recipe=recipe, **changes)


def trained(backend, setting, rounds=2):
    """Outcomes of rounds in which workers keep buffers and optimizers, and what the workers hold then."""
    backend.start(setting.worker_specs(), setting.splits.train)
    found = []
    for index in range(1, rounds + 1):
        orders = [replace(order, keep_buffers=index > 1) for order in orders_of(setting, index)]
        found += sorted(backend.train(orders), key=lambda outcome: outcome.worker_id)
    states = dict(backend.worker_states())
    backend.close()
    return found, states


def assert_same(one, other):
    for ours, theirs in zip(one[0], other[0], strict=True):
        assert not isinstance(ours, Failure), ours.reason
        assert torch.equal(ours.delta, theirs.delta)
        assert torch.equal(ours.integers, theirs.integers)
        assert (ours.loss, ours.accuracy, ours.efficiency, ours.num_samples) == (
            theirs.loss,
            theirs.accuracy,
            theirs.efficiency,
            theirs.num_samples,
        )
    for worker, state in one[1].items():
        for name, value in state.tensors.items():
            assert torch.equal(value, other[1][worker].tensors[name]), (worker, name)


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU", "Python"])
@pytest.mark.parametrize("fits", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_halves_of_a_stack_give_the_bits_of_stacks_that_were_small_from_the_start(
    monkeypatch, error, fits, optimizer
):
    setting = experiment(5, dropout_rate=0.1)
    setting = replace(setting, recipe=replace(setting.recipe, optimizer=optimizer))
    small = trained(VectorisedBackend(lanes=1, threads=1, stacked=fits), setting)
    short = Short(monkeypatch, fits, error)
    backend = VectorisedBackend(lanes=1, threads=1)
    assert_same(trained(backend, setting), small)
    assert short.refused == {1: [5, 3, 2], 2: [5, 3], 3: [5]}[fits]
    assert (backend.at_a_time, backend.backed_off) == (fits, True)


def test_memory_that_gets_short_later_leaves_what_workers_hold(monkeypatch):
    setting = experiment()
    ample, _ = trained(VectorisedBackend(lanes=1, threads=1), setting)
    short = Short(monkeypatch, 2, from_round=2)
    found, _ = trained(VectorisedBackend(lanes=1, threads=1), setting)
    assert short.refused == [4]
    for ours, theirs in zip(found, ample, strict=True):
        assert float((ours.delta - theirs.delta).norm()) <= 1e-5 * float(theirs.delta.norm())


def test_stacks_in_lanes_are_halved_too(monkeypatch):
    setting = experiment()
    small = trained(VectorisedBackend(lanes=2, threads=1, stacked=1), setting)
    Short(monkeypatch, 1)
    backend = VectorisedBackend(lanes=2, threads=1)
    assert_same(trained(backend, setting), small)
    assert (backend.at_a_time, backend.lanes) == (1, 2)


def test_after_single_workers_come_fewer_lanes(monkeypatch):
    setting = experiment()
    small = trained(VectorisedBackend(lanes=1, threads=1, stacked=1), setting)
    backend = VectorisedBackend(lanes=4, threads=1)
    update = stacking._Round._update

    def short(run, *rest):
        if backend.lanes > 1:
            raise ERRORS[1]
        update(run, *rest)

    monkeypatch.setattr(stacking._Round, "_update", short)
    assert_same(trained(backend, setting), small)
    assert (backend.at_a_time, backend.lanes) == (1, 1)


def test_a_run_tells_of_it_once_and_ends_with_the_same_weights(monkeypatch, runs, caplog):
    setting = replace(experiment(), epochs=3)
    expected, quiet = runs.run(VectorisedBackend(lanes=1, threads=1, stacked=1), setting)
    assert quiet.told("backed_off") == []
    Short(monkeypatch, 1)
    result, recorder = runs.run(VectorisedBackend(lanes=1, threads=1), setting)
    runs.assert_same_weights(result, expected)
    [event] = recorder.events
    assert (event.kind, event.round_index, event.worker_id) == ("backed_off", 1, None)
    assert event.reason.startswith("a step of 4 worker(s), 16 rows and ")
    assert "DefaultCPUAllocator" in event.reason
    assert event.reason.endswith("; from now on 1 worker(s) at a time")
    totals = result.state.totals
    assert (totals.failures, totals.restarts) == (0, 0)
    with caplog.at_level(logging.WARNING, logger="hqde"):
        RoundLog().on_event(event)
    assert "round 1: backed_off: a step of 4 worker(s)" in caplog.text


@pytest.mark.parametrize("lanes", [1, 2])
def test_one_worker_alone_that_does_not_fit_ends_the_run_with_the_cure(monkeypatch, lanes):
    Short(monkeypatch, 0)
    with pytest.raises(OutOfMemoryError) as caught:
        Engine(experiment(), VectorisedBackend(lanes=lanes, threads=1)).run()
    assert isinstance(caught.value, HqdeError)
    sentence = str(caught.value)
    assert "a step of 1 worker(s), 16 rows" in sentence
    assert "MiB free on cpu" in sentence
    assert "lower training.batch_size (it is 16), set training.precision to bf16-mixed or" in sentence
    assert "\n" not in sentence


def test_the_first_rows_that_do_not_fit_say_so_and_not_that_the_model_cannot_be_stacked(monkeypatch):
    def short(*_):
        raise ERRORS[0]

    for place in ("hqde.backends.vectorised.step_bytes", "hqde.training.stacking.Stack.try_out"):
        with monkeypatch.context() as patch:
            patch.setattr(place, short)
            with pytest.raises(OutOfMemoryError, match=r"the first rows ran out of memory.*batch_size"):
                Engine(experiment(), VectorisedBackend(threads=1)).prepare()


def test_what_a_step_held_is_free_before_a_smaller_one_begins(monkeypatch):
    held, alive, refused = [], [], []
    leaves, step_rows = vmapped.Vmapped.leaves, vmapped.step_rows

    def watched(stack, state):
        alive.extend(ref for ref in held if ref() is not None)
        found = leaves(stack, state)
        held.extend(weakref.ref(leaf) for leaf in found)
        return found

    def short(rows, *rest):
        if len(rows) > 2:
            refused.append(len(rows))
            raise RuntimeError(CPU)
        step_rows(rows, *rest)

    setting = experiment()
    backend = VectorisedBackend(lanes=1, threads=1)
    backend.start(setting.worker_specs(), setting.splits.train)
    backend.stacks[0].use_vmap()
    monkeypatch.setattr(vmapped.Vmapped, "leaves", watched)
    monkeypatch.setattr(vmapped, "step_rows", short)
    gc.disable()
    try:
        assert len(list(backend.train(orders_of(setting)))) == 4
    finally:
        gc.enable()
        backend.close()
    assert refused == [4]
    assert held
    assert alive == []


def test_memory_that_ends_while_workers_are_given_their_moments_changes_none_of_them(monkeypatch):
    setting = experiment()
    monkeypatch.setattr(stacking, "perceptron_of", lambda worker: None)
    small = trained(VectorisedBackend(lanes=1, threads=1, stacked=2), setting)
    write, refused = vmapped.write_moments, []

    def short(moments, optimizers, recipe):
        copies = iter(range(1000))

        def clone(tensor):
            if len(optimizers) > 2 and next(copies) == 10:  # in the middle of the second worker's
                refused.append(len(optimizers))
                raise RuntimeError(CPU)
            return tensor.detach().new_empty(tensor.shape).copy_(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "clone", clone)
            write(moments, optimizers, recipe)

    monkeypatch.setattr(vmapped, "write_moments", short)
    assert_same(trained(VectorisedBackend(lanes=1, threads=1), setting), small)
    assert refused == [4]


def test_errors_that_are_not_of_memory_stay_failures(monkeypatch):
    Short(monkeypatch, 1, RuntimeError("shapes cannot be multiplied"))
    outcomes, _ = trained(VectorisedBackend(lanes=1, threads=1), experiment(), rounds=1)
    assert [(o.kind, o.reason) for o in outcomes] == [
        ("raised", "RuntimeError: shapes cannot be multiplied")
    ] * 4
    assert not is_out_of_memory(ValueError(CPU))


def test_local_workers_side_by_side_become_fewer_after_the_round(monkeypatch):
    setting = experiment()
    backend = LocalBackend(lanes=4, threads=1)
    step = Worker._step

    def short(worker, *rest, **named):
        if backend.seating.lanes > 2 and worker.spec.worker_id in (1, 3):
            raise ERRORS[1]
        return step(worker, *rest, **named)

    monkeypatch.setattr(Worker, "_step", short)
    backend.start(setting.worker_specs(), setting.splits.train)
    failed = [o for o in backend.train(orders_of(setting)) if isinstance(o, Failure)]
    assert sorted((o.worker_id, o.kind) for o in failed) == [(1, "memory"), (3, "memory")]
    assert all(o.reason.endswith("; from now on 2 worker(s) at a time") for o in failed)
    assert backend.seating.lanes == 2
    assert not any(isinstance(o, Failure) for o in backend.train(orders_of(setting, 2)))
    backend.close()
