"""Which parameters decay, and an optimizer's state as tensors and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hqde.errors import CheckpointError
from hqde.seeding import seeded
from hqde.training import Recipe, make_optimizer
from hqde.training.optimizers import load_optimizer_tensors, optimizer_tensors

RECIPES = {
    "adamw": Recipe(),
    "sgd": Recipe(optimizer="sgd", learning_rate=0.1),
    "sgd without momentum": Recipe(optimizer="sgd", learning_rate=0.1, momentum=0.0),
}


def model() -> nn.Module:
    with seeded(0, "test"):
        return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(6, 2))


def steps(optimizer: torch.optim.Optimizer, net: nn.Module, count: int) -> None:
    draws = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.randn(5, 2, 2, generator=draws)).square().mean().backward()
        optimizer.step()


def values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_biases_and_normalisation_do_not_decay():
    net = model()
    optimizer = make_optimizer(net, Recipe(weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_reaches_every_parameter_group(name):
    recipe = RECIPES[name]
    optimizer = make_optimizer(model(), recipe)
    for group in optimizer.param_groups:
        assert group["lr"] == recipe.learning_rate
        if recipe.optimizer == "sgd":
            assert group["momentum"] == recipe.momentum
            assert group["nesterov"] == (recipe.momentum > 0)
    assert isinstance(optimizer, torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.SGD)


def test_frozen_and_tied_parameters_are_counted_once_or_not_at_all():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    optimizer = make_optimizer(net, Recipe())
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in found] == [id(net[0].weight), id(net[1].bias)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_state_put_back_goes_on_with_the_same_bits(name):
    recipe, whole = RECIPES[name], model()
    optimizer = make_optimizer(whole, recipe)
    steps(optimizer, whole, 3)
    tensors = optimizer_tensors(optimizer)
    restored = copy.deepcopy(whole)
    steps(optimizer, whole, 2)
    other = make_optimizer(restored, recipe)
    load_optimizer_tensors(other, tensors)
    steps(other, restored, 2)
    assert all(torch.equal(a, b) for a, b in zip(values(whole), values(restored), strict=True))
    assert bool(tensors) == (name != "sgd without momentum")


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_tensors_handed_out_and_taken_in_are_copies(name):
    net = model()
    optimizer = make_optimizer(net, RECIPES[name])
    steps(optimizer, net, 1)
    tensors = optimizer_tensors(optimizer)
    kept = {key: value.clone() for key, value in tensors.items()}
    other = make_optimizer(net, RECIPES[name])
    load_optimizer_tensors(other, tensors)
    steps(optimizer, net, 1)
    steps(other, net, 1)
    assert all(torch.equal(tensors[key], kept[key]) for key in kept)


def test_an_empty_state_makes_a_used_optimizer_new():
    net = model()
    optimizer = make_optimizer(net, Recipe())
    steps(optimizer, net, 2)
    load_optimizer_tensors(optimizer, {})
    assert optimizer_tensors(optimizer) == {}


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"6.exp_avg": torch.zeros(2)}, "'6.exp_avg' has no parameter among 6"),
        ({"x.exp_avg": torch.zeros(2)}, "'x.exp_avg' has no parameter among 6"),
        ({"0.exp_avg": torch.zeros(3)}, r"'0.exp_avg' is \(3,\), its parameter \(3, 2, 1\)"),
        ({"0.momentum_buffer": torch.zeros(3, 2, 1)}, "'0.momentum_buffer' is none of AdamW, which keeps"),
    ],
)
def test_the_state_of_another_optimizer_or_model_is_refused(tensors, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        load_optimizer_tensors(make_optimizer(model(), Recipe()), tensors)
