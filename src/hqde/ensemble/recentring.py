"""What a rounding of weights moved in a model's means, moved back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import Conv1d, Conv2d, Conv3d

MOST_STRETCH = 2.0  # of a variance, either way: what is more is no rounding


@dataclass(frozen=True)
class Moments:
    """Mean and variance ``(channels,)`` of what a layer puts out, or a batch normalisation is given."""

    mean: Tensor
    variance: Tensor


def observe(model: nn.Module, run: Callable[[], Any]) -> dict[str, Moments]:
    """Moments at every layer that ``recentre`` can mend: those with a bias, and batch normalisations.

    Args:
        model: left as it is.
        run: feeds it one batch, so that each layer is called once; layers called more often are left out.

    >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).requires_grad_(False)
    >>> list(observe(model, lambda: model(torch.ones(4, 2))))
    ['0']
    """
    found: dict[str, list[Moments]] = {}

    def note(name: str, channel_dim: int, values: Tensor) -> None:
        found.setdefault(name, []).append(_moments(values, channel_dim))

    _run_watched(model, run, set(_layers(model)), note)
    return {name: moments[0] for name, moments in found.items() if len(moments) == 1}


def recentre(model: nn.Module, run: Callable[[], Any], before: Mapping[str, Moments]) -> None:
    """Move biases and running statistics so that layers have the moments that they had.

    A rounded weight times activations that are not zero on average, as after a ReLU, shifts a layer's
    output; ``run`` feeds the same rows as before the rounding, and each layer takes its shift out for those
    behind it. Of a batch normalisation the running mean is shifted and the running variance stretched.

    Args:
        model: in evaluation mode; changed in place.
        run: as for ``observe``, the same batch.
        before: what ``observe`` found.

    Example:
        >>> model = nn.Linear(2, 1).requires_grad_(False)
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> before, wanted = observe(model, lambda: model(rows)), model(rows).mean()
        >>> _ = model.weight.add_(0.5)
        >>> recentre(model, lambda: model(rows), before)
        >>> bool((model(rows).mean() - wanted).abs() < 1e-5)
        True

    Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
    section 4.2, the empirical variant.
    """
    layers = dict(model.named_modules())

    def mend(name: str, channel_dim: int, values: Tensor) -> Tensor | None:
        layer, now = layers[name], _moments(values, channel_dim)
        shift = (now.mean - before[name].mean).to(values.dtype)
        if isinstance(layer, _BatchNorm):
            stretch = now.variance / before[name].variance
            stretch = torch.where(stretch.isfinite() & (stretch > 0), stretch, 1.0)
            layer.running_mean.add_(shift)  # type: ignore[union-attr]
            layer.running_var.mul_(stretch.clamp(1 / MOST_STRETCH, MOST_STRETCH))  # type: ignore[union-attr]
            return None
        layer.bias.sub_(shift)
        shape = [1] * values.dim()
        shape[channel_dim] = -1
        return values - shift.view(shape)

    with torch.no_grad():
        _run_watched(model, run, set(before), mend)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    held: list[int] = []
    for name, layer in model.named_modules():
        own = None
        if isinstance(layer, _BatchNorm):
            own = layer.running_mean
        elif isinstance(layer, nn.Linear | Conv1d | Conv2d | Conv3d):
            own = layer.bias
        if own is not None:
            held.append(id(own))
            found[name] = layer
    shared = {own for own in held if held.count(own) > 1}  # cannot be moved for two layers at once
    return {name: layer for (name, layer), own in zip(found.items(), held, strict=True) if own not in shared}


def _run_watched(
    model: nn.Module,
    run: Callable[[], Any],
    names: set[str],
    watch: Callable[[str, int, Tensor], Tensor | None],
) -> None:
    """``watch`` outputs (of batch normalisations, inputs) of these layers; it may return another output."""
    hooks = []
    for name, layer in _layers(model).items():
        if name not in names:
            continue
        if isinstance(layer, _BatchNorm):
            hooks.append(layer.register_forward_pre_hook(lambda _, given, at=name: watch(at, 1, given[0])))
            continue
        dim = -1 if isinstance(layer, nn.Linear) else -len(layer.kernel_size) - 1  # type: ignore[arg-type]
        hooks.append(layer.register_forward_hook(lambda _, __, out, at=name, dim=dim: watch(at, dim, out)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()


def _moments(values: Tensor, channel_dim: int) -> Moments:
    rows = values.detach().movedim(channel_dim, 0).flatten(1).float()
    return Moments(rows.mean(dim=1), rows.var(dim=1, correction=0))
