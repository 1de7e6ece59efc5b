"""Stacked perceptrons: outputs, gradients and statistics are those of each model by itself, in float64."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from hqde.aggregation import Mean
from hqde.backends.vectorised import VectorisedBackend
from hqde.models import MLP, Dropout, ModelSpec, set_mask_source
from hqde.rounds import Engine
from hqde.testing import small_experiment
from hqde.training import Recipe, stacking
from hqde.training.masks import plan_masks
from hqde.training.optimizers import make_optimizer
from hqde.training.perceptron_steps import StackedPerceptrons
from hqde.training.perceptrons import Perceptron
from hqde.training.stacked import Stacked
from hqde.training.stacked_optimizers import BETAS, EPSILON, step_rows
from hqde.training.step_kernels import sgd_row
from hqde.weights import Layout

WORKERS, ROWS = 3, 7


def chains(outputs):
    return {
        "mlp": MLP((2, 3), outputs, hidden=(5, 6)),
        "linear": nn.Sequential(nn.Linear(6, outputs)),
        "no norm": nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, outputs)),
        "norm alone": nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5, eps=1e-3, momentum=0.3), nn.Linear(5, outputs)
        ),
        "dropout alone": nn.Sequential(nn.Linear(6, 5), Dropout(0.5), nn.Identity(), nn.Linear(5, outputs)),
        "backwards": NamedBackwards(outputs),
        "layers alone": nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, outputs)),
    }


class NamedBackwards(nn.Module):
    """Its layers are called in another order than they are named in."""

    def __init__(self, outputs):
        super().__init__()
        self.last, self.norm2, self.second = nn.Linear(4, outputs), nn.BatchNorm1d(4), nn.Linear(5, 4)
        self.norm1, self.first = nn.BatchNorm1d(5), nn.Linear(6, 5)

    def forward(self, x):
        return self.last(self.norm2(self.second(self.norm1(self.first(x)))))


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def worker_of(model, loss="cross_entropy"):
    """What stacked perceptrons ask of a worker."""
    recipe = Recipe(label_smoothing=0.1)
    spec = SimpleNamespace(recipe=recipe)
    optimizer = make_optimizer(model, recipe)
    return SimpleNamespace(spec=spec, loss=loss, layout=Layout.of(model), optimizer=optimizer, model=model)


def state_of(model, rows):
    own = [b for b in model.buffers() if b.is_floating_point()]
    count = sum(not b.is_floating_point() for b in model.buffers())
    running = torch.cat([b.flatten() for b in own]) if own else torch.empty(0)
    buffers = {
        "running": running.repeat(len(rows), 1),
        "seen": torch.zeros(len(rows), count, dtype=torch.int64),
    }
    moments = {name: torch.zeros_like(rows) for name in ("exp_avg", "exp_avg_sq")}
    return Stacked(rows, buffers, moments | {"step": torch.zeros(len(rows), 1)})


def targets_of(loss, draws):
    if loss == "cross_entropy":
        return torch.randint(0, 2, (WORKERS, ROWS), generator=draws)
    return torch.randn(WORKERS, ROWS, generator=draws)


def exact_loss(outputs, targets, loss):
    """In float64, by PyTorch's own."""
    if loss == "cross_entropy":
        return functional.cross_entropy(outputs, targets, label_smoothing=0.1)
    if loss == "mse":
        return functional.mse_loss(outputs[:, 0], targets.double())
    mean, told = outputs.unbind(1)
    return functional.gaussian_nll_loss(mean, targets.double(), told.clamp(-10, 10).exp(), eps=0.0)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "gaussian_nll"])
@pytest.mark.parametrize("name", list(chains(1)))
def test_losses_gradients_and_statistics_are_those_of_each_model_alone(name, loss):
    torch.manual_seed(0)
    outputs = 1 if loss == "mse" else 2
    model, draws = chains(outputs)[name].train(), torch.Generator().manual_seed(1)
    chain = Perceptron.of(model, names_of(model))
    assert chain is not None
    size = sum(p.numel() for p in model.parameters())
    rows = torch.randn(WORKERS, size, generator=draws)
    inputs = torch.randn(WORKERS, ROWS, *((2, 3) if name == "mlp" else (6,)), generator=draws)
    state, targets = state_of(model, rows), targets_of(loss, draws)
    plan = plan_masks(copy.deepcopy(model), inputs[0], ROWS, autocast=nullcontext())
    rates = [[m.p for m in model.modules() if isinstance(m, Dropout)]] * WORKERS
    both = [[torch.Generator().manual_seed(place) for place in range(WORKERS)] for _ in range(2)]
    stacked = StackedPerceptrons(chain, worker_of(model, loss))
    assert stacked.takes(inputs)
    sums, gradients = stacked.gradients(state, inputs, targets, plan.draws(ROWS, both[0], rates))
    found = stacked.named(gradients, state)
    masks = plan.draw(ROWS, both[1], rates)
    for worker in range(WORKERS):
        exact = copy.deepcopy(model).double()
        own = iter([mask[worker].double() for mask in masks])
        set_mask_source(lambda layer, x, own=own: next(own), exact)
        parts = rows[worker].double().split([p.numel() for p in model.parameters()])
        parameters = {
            n: part.view_as(p).requires_grad_()
            for (n, p), part in zip(model.named_parameters(), parts, strict=True)
        }
        running = {n: b.clone() for n, b in exact.named_buffers()}
        outputs = functional_call(exact, (parameters, running), (inputs[worker].double(),))
        expected = exact_loss(outputs, targets[worker], loss)
        torch.testing.assert_close(sums[worker] / ROWS, expected.detach(), rtol=1e-4, atol=1e-4)
        expected.backward()
        for n, parameter in parameters.items():
            torch.testing.assert_close(found[n][worker].double(), parameter.grad, rtol=1e-3, atol=1e-4)
        for n, value in running.items():
            moved = found[n][worker].to(value.dtype)
            torch.testing.assert_close(moved, value, rtol=1e-5, atol=1e-6)


def test_hits_are_the_rows_whose_class_has_the_largest_logit():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    state = state_of(model, torch.eye(2).reshape(1, 4))
    stacked = StackedPerceptrons(Perceptron.of(model, names_of(model)), worker_of(model))
    inputs = torch.tensor([[[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [torch.nan, 0.0]]])
    none = plan_masks(model, inputs[0], 4, autocast=nullcontext()).draws(4, [torch.Generator()], [[]])
    _, hits = stacked.step(state, inputs, torch.tensor([[0, 0, 0, 0]]), none, [0.1])
    assert hits.tolist() == [3]  # the first of equal logits counts, and a NaN is the largest, as for PyTorch
    assert inputs[0].argmax(1).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("target", [-1, 2, 2**40])
def test_targets_that_are_no_classes_are_refused_and_nobody_moves_after_them(target):
    model = nn.Sequential(nn.Linear(2, 2))
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    state, before = state_of(model, rows), rows.clone()
    stacked = StackedPerceptrons(Perceptron.of(model, names_of(model)), worker_of(model))
    inputs, targets = torch.randn(3, 4, 2), torch.zeros(3, 4, dtype=torch.int64)
    targets[1, 2] = target
    draws = [torch.Generator()] * 3
    none = plan_masks(model, inputs[0], 4, autocast=nullcontext()).draws(4, draws, [[]] * 3)
    with pytest.raises(IndexError, match=r"worker 1 of the stack .* outputs for 2 classes"):
        stacked.step(state, inputs, targets, none, [0.1] * 3)
    assert torch.equal(state.rows[1:], before[1:])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_sgd(momentum, nesterov):
    draws = torch.Generator().manual_seed(0)
    recipe = Recipe(optimizer="sgd", momentum=momentum, nesterov=nesterov, clip_norm=0.3)
    decay = torch.where(torch.arange(50) % 2 == 0, 0.05, 0.0)
    found = torch.randn(2, 50, generator=draws)
    expected, buffers = found.clone(), torch.zeros(2, 50)
    moments = {"momentum_buffer": torch.zeros(2, 50), "step": torch.zeros(2, 1)}
    rates, settings = torch.tensor([[1e-2], [3e-3]]), (momentum, float(nesterov), 0.0, 0.3)
    for _ in range(4):
        gradients = torch.randn(2, 50, generator=draws)
        for row in range(2):
            arrays = (found[row].numpy(), gradients[row].numpy(), buffers[row].numpy())
            sgd_row(*arrays, float(rates[row]), decay.numpy(), settings)
        step_rows(expected, gradients, moments, rates, decay, recipe)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.second(x + self.first(x))


def hooked():
    model = nn.Sequential(nn.Linear(6, 2))
    model[0].register_forward_hook(lambda *_: None)
    return model


def with_a_spare_parameter():
    model = nn.Sequential(nn.Linear(6, 2))
    model.register_parameter("spare", nn.Parameter(torch.zeros(1)))
    return model


def hooked_as_a_whole():
    model = nn.Sequential(nn.Linear(6, 2))
    model.register_forward_hook(lambda *_: None)
    return model


def sharing(what):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    setattr(model[2], what, getattr(model[0], what))
    return model


def scaled_only():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    model[1].bias = None
    return model


class Frozen(nn.Sequential):
    """Its normalisation never trains."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


class Counts(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen.add_(1)
        return super().forward(x)


@pytest.mark.parametrize(
    "model",
    [
        hooked_as_a_whole(),
        sharing("weight"),
        sharing("bias"),
        scaled_only(),
        Frozen(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
        Counts(nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(6, 5), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.1), nn.Linear(5, 2)),
        nn.Sequential(nn.ReLU(), nn.Linear(6, 2)),
        MLP((6,), 2, hidden=(32,), norm="group"),
        Skips(),
        hooked(),
        with_a_spare_parameter(),
    ],
)
def test_what_is_no_such_chain_is_left_to_vmap(model):
    assert Perceptron.of(model, [n for n in names_of(model) if n != "spare"]) is None


def test_frozen_parameters_and_odd_inputs_are_left_to_vmap():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    assert Perceptron.of(model, names_of(model)[1:]) is None
    chain = Perceptron.of(model, names_of(model))
    assert chain.takes(torch.zeros(3, 2, 6))
    assert not chain.takes(torch.zeros(3, 1, 6))  # one row has no variance
    assert not chain.takes(torch.zeros(3, 2, 4, 6))  # a linear layer would keep the third dimension
    assert not chain.takes(torch.zeros(3, 2, 6, dtype=torch.float64))


class Hides(nn.Module):
    """Its graph is that of a linear layer, which it is not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(x)


@pytest.mark.parametrize(("model", "is_one"), [(Hides, False), (None, True)])
def test_what_a_graph_does_not_show_shows_when_it_is_tried_out(model, is_one):
    experiment = small_experiment(num_workers=4)
    if model is not None:
        experiment = replace(
            experiment, model=ModelSpec("test_perceptrons:Hides", {}, model), dropout_rate=None
        )
    backend = VectorisedBackend(lanes=2, threads=1)
    backend.start(experiment.worker_specs(), experiment.splits.train)
    assert [stack.is_perceptron for stack in backend.stacks] == [True, True]
    backend.check(torch.arange(16), Mean())
    assert [stack.is_perceptron for stack in backend.stacks] == [is_one, is_one]
    backend.close()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_gives_what_vmap_gives(optimizer, monkeypatch):
    experiment = small_experiment(num_workers=4)
    recipe = replace(experiment.recipe, optimizer=optimizer, clip_norm=0.5, label_smoothing=0.1)
    experiment = replace(experiment, recipe=recipe)
    found = Engine(experiment, VectorisedBackend(lanes=1, threads=1)).run().ensemble
    used = []
    monkeypatch.setattr(stacking, "perceptron_of", used.append)
    expected = Engine(experiment, VectorisedBackend(lanes=1, threads=1)).run().ensemble
    assert used
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    tolerance = 2e-2 if optimizer == "adamw" else 1e-4  # Adam makes whole steps of rounding
    torch.testing.assert_close(
        found.predict_members(rows), expected.predict_members(rows), rtol=0.0, atol=tolerance
    )


def test_bits_do_not_depend_on_whom_a_worker_is_stacked_with():
    experiment = small_experiment(num_workers=4)
    found = []
    for lanes, stacked in ((1, 4), (1, 1), (2, 2), (1, 3)):
        backend = VectorisedBackend(lanes=lanes, threads=1, stacked=stacked)
        found.append(Engine(experiment, backend).run().state.committed)
    for other in found[1:]:
        assert all(torch.equal(a.vector, b.vector) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("clip_norm", [0.0, 0.1, 1e9])
def test_steps_are_those_of_adamw(clip_norm):
    draws = torch.Generator().manual_seed(0)
    size, rates = 103, [1e-2, 3e-3]
    start = torch.randn(2, size, generator=draws)
    decay = torch.where(torch.arange(size) % 2 == 0, 0.05, 0.0)
    rows, moments = start.clone(), {"step": torch.zeros(2, 1)}
    moments |= {name: torch.zeros(2, size) for name in ("exp_avg", "exp_avg_sq")}
    exact = [nn.Parameter(row.double().clone()) for row in start]
    kept = [(torch.zeros(size).double(), torch.zeros(size).double()) for _ in exact]
    for step in range(1, 6):
        gradients = torch.randn(2, size, generator=draws)
        step_rows(
            rows,
            gradients.clone(),
            moments,
            torch.tensor(rates).unsqueeze(1),
            decay,
            Recipe(clip_norm=clip_norm),
        )
        for place, (row, (first, second), rate) in enumerate(zip(exact, kept, rates, strict=True)):
            g = gradients[place].double()
            if clip_norm:
                g = g * min(1.0, clip_norm / (float(g.norm()) + 1e-6))
            first.lerp_(g, 1 - BETAS[0])
            second.mul_(BETAS[1]).add_((1 - BETAS[1]) * g * g)
            away = (second / (1 - BETAS[1] ** step)).sqrt() + EPSILON
            with torch.no_grad():
                row.mul_(1 - rate * decay.double())
                row.sub_(rate / (1 - BETAS[0] ** step) * first / away)
    torch.testing.assert_close(
        rows.double(), torch.stack([row.detach() for row in exact]), rtol=1e-5, atol=1e-6
    )


def test_a_worker_without_finite_gradients_spoils_no_other():
    rows, gradients = torch.ones(2, 40), torch.ones(2, 40)
    moments = {name: torch.zeros(2, 40) for name in ("exp_avg", "exp_avg_sq")} | {"step": torch.zeros(2, 1)}
    gradients[0, 3] = torch.nan
    step_rows(rows, gradients, moments, torch.full((2, 1), 0.1), torch.zeros(40), Recipe())
    assert bool(rows[0].isnan().all())
    assert bool(rows[1].isfinite().all())
