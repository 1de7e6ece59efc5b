"""Stacked perceptrons: outputs, gradients and statistics are those of each model by itself, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hqde.aggregation import Mean
from hqde.backends import seat_perceptrons
from hqde.backends.vectorised import VectorisedBackend
from hqde.models import MLP, Dropout, ModelSpec, set_mask_source
from hqde.planning.candidates import candidates_for
from hqde.rounds import Engine
from hqde.testing import small_experiment
from hqde.training import Recipe, stacking
from hqde.training.perceptrons import Perceptron
from hqde.training.stacked_optimizers import BETAS, EPSILON, step_rows

WORKERS, ROWS = 3, 7


def chains():
    return {
        "mlp": MLP((2, 3), 4, hidden=(5, 6)),
        "linear": nn.Sequential(nn.Linear(6, 3)),
        "no norm": nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)),
        "norm alone": nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5, eps=1e-3, momentum=0.3), nn.Linear(5, 2)
        ),
        "dropout alone": nn.Sequential(nn.Linear(6, 5), Dropout(0.5), nn.Identity(), nn.Linear(5, 2)),
    }


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def masks_of(model, draws):
    """By place; of layers that drop nothing there are none."""
    masks, width, place = {}, None, 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            width = module.out_features
        if isinstance(module, Dropout):
            masks[place] = 2.0 * (torch.rand(WORKERS, ROWS, width, generator=draws) < 0.5)
            place += 1
    return masks


@pytest.mark.parametrize("name", list(chains()))
def test_outputs_gradients_and_statistics_are_those_of_each_model_alone(name):
    torch.manual_seed(0)
    model, draws = chains()[name].train(), torch.Generator().manual_seed(1)
    chain = Perceptron.of(model, names_of(model))
    assert chain is not None
    size = sum(p.numel() for p in model.parameters())
    rows = torch.randn(WORKERS, size, generator=draws)
    inputs = torch.randn(WORKERS, ROWS, *((2, 3) if name == "mlp" else (6,)), generator=draws)
    buffers = {n: torch.stack([b] * WORKERS) for n, b in model.named_buffers()}
    pull, masks = (
        torch.randn(WORKERS, ROWS, 4 if name == "mlp" else model[-1].out_features),
        masks_of(model, draws),
    )
    assert chain.takes(inputs)
    outputs, kept = chain.forward(rows, buffers, inputs, masks)
    gradients = chain.backward(rows, kept, pull.clone())
    for worker in range(WORKERS):
        exact = copy.deepcopy(model).double()
        own = iter([masks[place][worker].double() for place in sorted(masks)])
        set_mask_source(lambda layer, x, own=own: next(own), exact)
        parts = rows[worker].double().split([p.numel() for p in model.parameters()])
        parameters = {
            n: part.view_as(p).requires_grad_()
            for (n, p), part in zip(model.named_parameters(), parts, strict=True)
        }
        state = {n: b.clone() for n, b in exact.named_buffers()}
        expected = functional_call(exact, (parameters, state), (inputs[worker].double(),))
        torch.testing.assert_close(outputs[worker].double(), expected, rtol=1e-4, atol=1e-4)
        (expected * pull[worker].double()).sum().backward()
        found = torch.cat([p.grad.flatten() for p in parameters.values()])
        torch.testing.assert_close(gradients[worker].double(), found, rtol=1e-3, atol=1e-4)
        for n, value in state.items():
            torch.testing.assert_close(buffers[n][worker].to(value.dtype), value, rtol=1e-5, atol=1e-6)


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


def test_planner_and_backend_seat_perceptrons_alike():
    experiment = small_experiment(num_workers=8)
    backend = VectorisedBackend()
    backend.start(experiment.worker_specs(), experiment.splits.train)
    [found] = [way for way in candidates_for(experiment) if way.backend == "vectorised"]
    seating = seat_perceptrons(8)
    assert backend.lanes == found.lanes == seating.lanes
    assert found.threads == seating.threads
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
