"""Optimizers of many workers at once: each row of a matrix is one worker's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hqde.training.held import Moments, copied_state, moments_of
from hqde.training.recipe import Recipe

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's


def read_moments(optimizers: Sequence[torch.optim.Optimizer], recipe: Recipe) -> Moments:
    """What the workers' own optimizers keep, behind each other."""
    own = [moments_of(optimizer, parameters_of(optimizer), recipe) for optimizer in optimizers]
    return {name: torch.stack([moments[name] for moments in own]) for name in own[0]}


def write_moments(moments: Moments, optimizers: Sequence[torch.optim.Optimizer], recipe: Recipe) -> None:
    """Put them into the workers' own optimizers, as those would keep them after as many steps.

    All of them or, where there is no memory for the copies, none.
    """
    kept = [
        copied_state({name: v[row] for name, v in moments.items()}, parameters_of(optimizer), recipe)
        for row, optimizer in enumerate(optimizers)
    ]
    for optimizer, own in zip(optimizers, kept, strict=True):
        optimizer.state.update(own)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the optimizer trains, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def decay_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Tensor:
    """Weight decay of each element of these parameters, ``(d,)``."""
    decays = {
        id(p): float(group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    return torch.cat([torch.full((p.numel(),), decays[id(p)], device=p.device) for p in parameters])


def clip_rows(gradients: Tensor, largest: float) -> Tensor:
    """Each row scaled to a norm of at most ``largest``, as ``clip_grad_norm_`` does; 0 leaves them alone."""
    if not largest:
        return gradients
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    return gradients.mul_((largest / (norms + 1e-6)).clamp_(max=1.0))


def step_rows(
    rows: Tensor, gradients: Tensor, moments: Moments, rates: Tensor, decay: Tensor, recipe: Recipe
) -> None:
    """One step of every row, in place, of gradients that are clipped to the recipe's norm.

    AdamW: ``p ← (1 - ηλ)p``, ``m ← β₁m + (1 - β₁)g``, ``v ← β₂v + (1 - β₂)g²``,
    ``p ← p - η m̂ / (√v̂ + ε)`` with bias-corrected m̂ and v̂. SGD: ``g ← g + λp``, ``b ← μb + g``,
    ``p ← p - η b``, or with Nesterov's momentum ``p ← p - η(g + μb)``.

    Args:
        rows: ``(w, d)`` parameters.
        gradients: ``(w, d)``; may be changed.
        moments: of these rows.
        rates: ``(w, 1)``.
        decay: ``(d,)``.
        recipe: of all workers.
    """
    moments["step"] += 1
    if recipe.optimizer == "adamw" and rows.device.type == "cpu":
        from hqde.training import step_kernels as kernels  # numba takes half a second to import

        kept = (moments[name].numpy() for name in ("exp_avg", "exp_avg_sq"))
        numbers = (moments["step"][:, 0].numpy(), rates[:, 0].numpy(), decay.numpy())
        settings = (*BETAS, EPSILON, recipe.clip_norm)
        kernels.adamw(rows.numpy(), gradients.numpy(), *kept, *numbers, settings)
        return
    clip_rows(gradients, recipe.clip_norm)
    if recipe.optimizer == "adamw":
        (first, second), step = BETAS, moments["step"]
        average, square = moments["exp_avg"], moments["exp_avg_sq"]
        rows.mul_(1 - rates * decay)
        average.lerp_(gradients, 1 - first)
        square.mul_(second).addcmul_(gradients, gradients, value=1 - second)
        scale = (square / (1 - second**step)).sqrt_().add_(EPSILON)
        rows.sub_(scale.reciprocal_().mul_(average).mul_(rates / (1 - first**step)))
        return
    gradients.addcmul_(decay.expand_as(rows), rows)
    buffer = moments["momentum_buffer"]
    buffer.mul_(recipe.momentum).add_(gradients)
    ahead = gradients.add_(buffer, alpha=recipe.momentum) if recipe.nesterov and recipe.momentum else buffer
    rows.sub_(ahead * rates)
