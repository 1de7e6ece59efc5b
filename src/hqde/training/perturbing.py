"""Noise on a worker's way: on its gradients, of a temperature; on its start, shared with its group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hqde.quantum import decohered, langevin_gradient_std
from hqde.seeding import generator
from hqde.training.recipe import Recipe
from hqde.weights import Layout, Weights


@dataclass(frozen=True)
class Perturbation:
    """A worker's part of the perturbations of its group, which cancel; see ``entangled_coefficients``.

    Attributes:
        stream: names the two draws that the group shares.
        cosine, sine: how much of each, times the size relative to the weights.
    """

    stream: tuple[int | str, ...]
    cosine: float
    sine: float


def perturbed(
    weights: Weights, layout: Layout, perturbation: Perturbation, *, centre: Tensor, seed: int
) -> Weights:
    """Weights moved by ``r_t · (cosine · ξ₁ + sine · ξ₂)``, with r_t the root mean square of each tensor.

    Args:
        weights: where the worker begins; never mutated. Buffers stay.
        layout: where the tensors stand.
        perturbation: the worker's part.
        centre: ``(d,)`` the group's weights, of which r_t is taken: common to all of its workers.
        seed: the run's.

    Example:
        >>> layout = Layout.of(torch.nn.Linear(1, 2))
        >>> start = Weights(torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.zeros(0, dtype=torch.int64))
        >>> def moved(cosine):
        ...     return perturbed(
        ...         start, layout, Perturbation(("pair",), cosine, 0.0), centre=start.vector, seed=0).vector
        >>> torch.allclose(moved(0.1) + moved(-0.1), 2 * start.vector)
        True
    """
    draws = generator(seed, *perturbation.stream)
    vector = weights.vector.clone()
    first, second = (torch.randn(layout.num_parameters, generator=draws) for _ in range(2))
    noise = (perturbation.cosine * first + perturbation.sine * second).to(vector.dtype)
    for slot in layout.parameters:
        part = slice(slot.offset, slot.end)
        vector[part] += centre[part].square().mean().sqrt() * noise[part]
    return replace(weights, vector=vector)


def heat(
    parameters: Iterable[Tensor],
    recipe: Recipe,
    *,
    rate: float,
    progress: float,
    num_rows: int,
    draws: torch.Generator,
) -> None:
    """Add to the gradients, in place, the noise that makes SGD a sampler at the recipe's temperature.

    Args:
        parameters: with the gradient of a mean loss.
        recipe: temperature, how it fades, and where in a cycle it counts.
        rate: learning rate of the step.
        progress: fraction of the run that is done.
        num_rows: examples of the worker.
        draws: where the noise comes from, on the parameters' device.
    """
    within = (progress * recipe.cycles) % 1.0
    if rate == 0.0 or within < recipe.heat_from:
        return
    temperature = decohered(recipe.temperature, recipe.decoherence, progress)
    std = langevin_gradient_std(rate, temperature, num_rows, momentum=recipe.momentum)
    for parameter in parameters:
        if parameter.grad is not None:
            noise = torch.randn(
                parameter.shape, generator=draws, device=parameter.device, dtype=parameter.dtype
            )
            parameter.grad.add_(noise, alpha=std)
