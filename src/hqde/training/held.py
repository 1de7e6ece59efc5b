"""A worker's weights and optimizer state, flat: what stacks hand from round to round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.training.recipe import Recipe
from hqde.weights import Weights

Moments = dict[str, Tensor]
"""What an optimizer keeps: ``(d,)`` of a worker, and ``step`` ``(1,)``; of stacked ones with w before it."""


@dataclass(frozen=True)
class Held:
    """Where a worker stands, before its model and optimizer are told.

    Attributes:
        weights: of its model.
        moments: of its optimizer, parameters in the order of the weights.
    """

    weights: Weights
    moments: Moments


def moments_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], recipe: Recipe) -> Moments:
    """What an optimizer keeps of these parameters, behind each other; zeros where it keeps nothing yet."""
    names = ("exp_avg", "exp_avg_sq") if recipe.optimizer == "adamw" else ("momentum_buffer",)
    moments = {name: torch.cat([_kept(optimizer, p, name) for p in parameters]) for name in names}
    first = parameters[0]
    step = float(optimizer.state.get(first, {}).get("step", 0.0))
    return moments | {"step": torch.tensor([step], dtype=torch.float32, device=first.device)}


def copied_state(
    moments: Moments, parameters: Sequence[Tensor], recipe: Recipe
) -> dict[Tensor, dict[str, Tensor]]:
    """What ``moments_of`` gave, copied into the state of an optimizer of these parameters."""
    own: dict[Tensor, dict[str, Tensor]] = {}
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        state = {
            name: values[start:end].view_as(parameter).clone()
            for name, values in moments.items()
            if name != "step"
        }
        if recipe.optimizer == "adamw":
            state["step"] = moments["step"][0].cpu().clone()
        own[parameter] = state
        start = end
    return own


def _kept(optimizer: torch.optim.Optimizer, parameter: Tensor, name: str) -> Tensor:
    found = optimizer.state.get(parameter, {}).get(name)
    return torch.zeros_like(parameter).flatten() if found is None else found.reshape(-1)
