"""A worker's optimizer, and its state as named tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hqde.errors import CheckpointError, PreconditionError
from hqde.training.recipe import Recipe

# What each optimizer keeps per parameter, as PyTorch names it.
_STATE_KEYS: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    torch.optim.SGD: frozenset({"momentum_buffer"}),
}


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, over the parameters that require gradients.

    Weight decay is left off tensors of fewer than two dimensions (biases, normalisation scales), the usual
    practice (He et al. 2019, "Bag of tricks").

    Raises:
        PreconditionError: no parameter requires a gradient.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise PreconditionError(
            f"all parameters of {type(model).__name__} are frozen; set requires_grad on those to train"
        )
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, foreach=True)
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        foreach=True,
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``"{parameter}.{key}"`` tensors, detached copies on the CPU."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().clone()
        for index, entries in state.items()
        for key, value in entries.items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave; hyper-parameters come from the recipe.

    Raises:
        CheckpointError: the tensors belong to another optimizer or model.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    keys = _STATE_KEYS[type(optimizer)]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdigit() or int(index) >= len(parameters):
            raise CheckpointError(f"optimizer state '{name}' has no parameter among {len(parameters)}")
        if key not in keys:
            raise CheckpointError(
                f"optimizer state '{name}' is none of {type(optimizer).__name__}, which keeps {sorted(keys)}"
            )
        if value.ndim and value.shape != parameters[int(index)].shape:
            raise CheckpointError(
                f"optimizer state '{name}' is {tuple(value.shape)}, its parameter "
                f"{tuple(parameters[int(index)].shape)}"
            )
        state.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
