"""Stacked workers: what each alone would have become, or a refusal with the cure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from hqde.backends import Failure, LocalBackend, VectorisedBackend
from hqde.data import MapExamples, Split, TensorExamples, make_splits
from hqde.errors import ConfigError, PreconditionError
from hqde.models import ModelSpec, model_spec
from hqde.rounds import Engine, GroupSettings
from hqde.testing import orders_of, small_experiment
from hqde.training import Diversity, Recipe, Worker, step_bytes

SGD = Recipe(batch_size=16, learning_rate=0.05, optimizer="sgd")


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(functional.dropout(x, 0.2, self.training))


class Branching(Drawing):
    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class Unused(Drawing):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


class Frozen(Drawing):
    def __init__(self):
        super().__init__()
        self.before = nn.Linear(6, 6)
        self.before.requires_grad_(False)

    def forward(self, x):
        return self.layer(self.before(x))


def experiment(factory=None, **changes):
    found = replace(small_experiment(num_workers=4), recipe=SGD)
    if factory is not None:
        found = replace(found, model=ModelSpec(factory.__name__, {}, factory=factory), dropout_rate=None)
    return replace(found, **changes)


def images(**changes):
    draws = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (60, 3, 8, 8), generator=draws, dtype=torch.uint8)
    labels = torch.randint(0, 3, (60,), generator=draws)
    splits = make_splits("images", TensorExamples(rows, labels), task="classification")
    model = model_spec("cnn", input_shape=(3, 8, 8), num_outputs=3, options={"channels": [4, 8]})
    return experiment(splits=splits, model=model, **changes)


def trained(backend, setting, *, rounds=1):
    backend.start(setting.worker_specs(), setting.splits.train)
    for index in range(1, rounds + 1):
        outcomes = sorted(backend.train(orders_of(setting, index)), key=lambda outcome: outcome.worker_id)
    states = dict(backend.worker_states())
    backend.close()
    return outcomes, states


def assert_near(setting, *, rounds=1, **options):
    ours, states = trained(VectorisedBackend(threads=1, **options), setting, rounds=rounds)
    expected, others = trained(LocalBackend(threads=1), setting, rounds=rounds)
    for one, other in zip(ours, expected, strict=True):
        assert not isinstance(one, Failure), one.reason
        assert float((one.delta - other.delta).norm()) <= 1e-3 * float(other.delta.norm())
        assert torch.equal(one.integers, other.integers)
        assert one.num_samples == other.num_samples
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.accuracy == pytest.approx(other.accuracy, abs=0.03)
        assert one.learning_rate == other.learning_rate
        assert one.efficiency == pytest.approx(other.efficiency, rel=1e-4)
    for worker, state in states.items():
        assert state.tensors.keys() == others[worker].tensors.keys()
        for name, value in state.tensors.items():
            assert value.shape == others[worker].tensors[name].shape


@pytest.mark.parametrize(
    "setting",
    [
        experiment(),
        experiment(dropout_rate=0.05, diversity=Diversity(dropout_spread=0.05)),  # some drop nothing at all
        experiment(dropout_rate=0.0, diversity=Diversity(dropout_spread=0.0)),
        experiment(partitioner=Split()),  # shards, and so last batches, of different sizes
        experiment(recipe=replace(SGD, clip_norm=0.05)),
        experiment(recipe=replace(SGD, nesterov=False, weight_decay=0.1)),
        experiment(Frozen),
        images(),
        images(recipe=replace(SGD, batch_size=7, label_smoothing=0.1)),
    ],
    ids=["mlp", "some dropout", "none", "split", "clipped", "heavy ball", "frozen", "cnn", "odd batches"],
)
@pytest.mark.parametrize("stacked", [0, 3])
def test_each_worker_becomes_what_it_would_alone(setting, stacked):
    assert_near(setting, stacked=stacked, lanes=1)
    assert_near(setting, stacked=stacked, lanes=2, rounds=2)


def test_adam_takes_the_steps_of_pytorchs():
    model = model_spec(
        "mlp", input_shape=(6,), num_outputs=2, options={"hidden": []}
    )  # nothing of gradient 0
    recipe = Recipe(batch_size=16, learning_rate=0.05, weight_decay=0.1)
    assert_near(experiment(recipe=recipe, model=model), rounds=2)


def test_bfloat16_trains_too():
    ours, _ = trained(VectorisedBackend(threads=1), experiment(recipe=replace(SGD, precision="bf16-mixed")))
    expected, _ = trained(LocalBackend(threads=1), experiment(recipe=replace(SGD, precision="bf16-mixed")))
    for one, other in zip(ours, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.02)


def test_a_whole_run_ends_with_members_as_good():
    setting = small_experiment(num_workers=4)
    setting = replace(setting, epochs=6, topology=replace(setting.topology, groups=4))
    found = [
        Engine(setting, backend).run().ensemble.evaluate(setting.splits.test)
        for backend in (VectorisedBackend(threads=1), LocalBackend(threads=1))
    ]
    assert found[0].nll == pytest.approx(found[1].nll, rel=0.05)


def test_the_rows_of_one_that_cannot_be_read_fail_alone():
    setting = experiment()
    backend = VectorisedBackend(threads=1, lanes=1)
    backend.start(setting.worker_specs(), setting.splits.train)
    orders = orders_of(setting)
    orders[2] = replace(orders[2], shard=torch.tensor([10**9, 10**9 + 1]))
    outcomes = list(backend.train(orders))
    assert [o.worker_id for o in outcomes if isinstance(o, Failure)] == [2]
    expected, _ = trained(LocalBackend(threads=1), setting)
    for outcome in outcomes:
        if not isinstance(outcome, Failure):
            other = expected[outcome.worker_id].delta
            assert float((outcome.delta - other).norm()) <= 1e-3 * float(other.norm())
    backend.close()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (experiment(Drawing), "cannot be stacked: vmap"),
        (experiment(Branching), "cannot be stacked"),
        (experiment(Unused), "do not depend on idle.weight, idle.bias"),
    ],
    ids=["draws", "branches", "unused"],
)
def test_a_model_that_cannot_be_stacked_is_refused_with_the_cure(setting, words):
    with pytest.raises(PreconditionError, match=words) as caught:
        Engine(setting, VectorisedBackend(threads=1)).prepare()
    assert "backend 'local'" in str(caught.value)


def test_workers_that_differ_are_refused():
    other = model_spec("mlp", input_shape=(6,), num_outputs=2, options={"hidden": [9]})
    topology = replace(small_experiment().topology, groups=4)
    for groups, words in (
        ({1: GroupSettings(model=other)}, "workers 0 and 1 have different architectures"),
        ({2: GroupSettings(recipe={"batch_size": 8})}, "workers 0 and 2 differ in more of their recipe"),
    ):
        setting = experiment(topology=topology, groups=groups)
        with pytest.raises(PreconditionError, match=words):
            VectorisedBackend(lanes=1).start(setting.worker_specs(), setting.splits.train)


def test_rows_read_by_code_of_the_users_are_refused():
    setting = experiment()
    rows = MapExamples(torch.utils.data.TensorDataset(torch.zeros(9, 6), torch.zeros(9, dtype=torch.int64)))
    with pytest.raises(PreconditionError, match="read by code of yours"):
        VectorisedBackend().start(setting.worker_specs(), rows)


def test_fp16_is_refused():
    setting = experiment(recipe=replace(SGD, precision="fp16-mixed"))
    with pytest.raises(PreconditionError, match="loss scaler"):
        VectorisedBackend().start(setting.worker_specs(), setting.splits.train)


def test_langevin_noise_is_refused():
    setting = experiment(recipe=replace(SGD, temperature=0.5, nesterov=False))
    with pytest.raises(PreconditionError, match="Langevin noise"):
        VectorisedBackend().start(setting.worker_specs(), setting.splits.train)


def test_a_negative_stack_is_refused():
    with pytest.raises(ConfigError, match="must not be negative"):
        VectorisedBackend(stacked=-1)


def test_memory_decides_how_many_stand_in_a_stack(monkeypatch):
    setting = experiment()
    worker = Worker(setting.worker_specs()[0], setting.splits.train)
    before = worker.layout.read(worker.model)
    bytes_of_a_step = step_bytes(worker)
    # Of 16 rows at least the hidden layer's activations of width 8 and the inputs of width 6, in float32.
    assert bytes_of_a_step >= 16 * (8 + 6) * 4
    assert torch.equal(before.vector, worker.layout.read(worker.model).vector)

    class Free:
        available = 2 * 2 * (bytes_of_a_step + 24 * worker.layout.size)

    monkeypatch.setattr("hqde.backends.vectorised.psutil.virtual_memory", lambda: Free)
    backend = VectorisedBackend(lanes=1, threads=1)
    backend.start(setting.worker_specs(), setting.splits.train)
    assert [len(stack.workers) for stack in backend.stacks] == [2, 2]
    backend.close()
