"""Batch normalisation, ReLU and 2 × 2 max-pool in one: what a processor's memory holds up, read once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version
from torch.nn import functional

from hqde.models import called_once, flows_alike, halves
from hqde.team import has_team

# Where our loops cannot have PyTorch's threads, its own operations are as fast with more than so many.
MOST_THREADS = 4

Array = npt.NDArray[Any]
Settings = tuple[tuple[Array, Array], float, float, bool]
"""Running mean and variance, ε, momentum, and whether to write over the inputs."""


class NormPoolReLU(nn.BatchNorm2d):
    """``relu(max_pool2d(batch_norm(x), 2))`` with the parameters and buffers of a ``BatchNorm2d``.

    In training on a CPU it takes a fifth of the time: scaling and ReLU are monotone, so the largest of each
    window can be found first, and only that is normalised. The same but for rounding. Where it does not apply
    (evaluation, other types than float32 and bfloat16, another layout than channels-last, more than 4 torch
    threads on systems where loops of ours cannot run on them) PyTorch's own operations do it.

    Args:
        norm: its parameters and buffers are shared.
        own_inputs: nobody else reads the inputs, before or after. The way back then writes over them: a
            second one through the same graph (``retain_graph=True``) is an error.

    Example:
        >>> layer = NormPoolReLU(nn.BatchNorm2d(3))
        >>> layer(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)).shape
        torch.Size([2, 3, 2, 2])
    """

    def __init__(self, norm: nn.BatchNorm2d, *, own_inputs: bool = False) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.own_inputs = own_inputs
        for name in ("weight", "bias"):
            setattr(self, name, getattr(norm, name))
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.train(norm.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` to ``(n, c, h // 2, w // 2)``."""
        if not self.training or not _applies(inputs):
            return functional.relu(functional.max_pool2d(super().forward(inputs), 2))
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        running = self.running_mean.numpy(), self.running_var.numpy()
        self.num_batches_tracked.add_(1)
        settings = running, self.eps, self.momentum, self.own_inputs
        out: Tensor = _Fused.apply(inputs, self.weight, self.bias, settings)
        return out


class NormPool(NamedTuple):
    """Three layers that a ``NormPoolReLU`` can take the place of.

    Attributes:
        norm: name of the ``BatchNorm2d``.
        others: names of the two after it.
        own_inputs: a convolution computes its inputs, for nobody else.
    """

    norm: str
    others: tuple[str, str]
    own_inputs: bool


def norm_pools(model: nn.Module) -> list[NormPool]:
    """Where a model does what a ``NormPoolReLU`` does, in three layers, and nobody looks in between.

    That is a ``BatchNorm2d`` and then, in either order, a ``ReLU`` and a ``MaxPool2d(2)``. A model that has
    such layers is copied and traced, which runs its code on stand-ins for values.

    Returns:
        the layers, in order; none where ``torch.fx`` cannot trace the model, or where it would do
        something else with other layers in these places.
    """
    if not {nn.BatchNorm2d, nn.MaxPool2d, nn.ReLU} <= {type(layer) for layer in model.modules()}:
        return []
    graphs = [(training, *called_once(model, training=training)) for training in (False, True)]
    evaluating, found = (_in_a_row(layers) for _, _, layers in graphs)
    found = [three for three in found if three in evaluating]
    fused = copy.deepcopy(model) if found else model
    fuse_norm_pools(fused, found)
    alike = all(
        graph is not None and flows_alike(fused, graph, leaves=(NormPoolReLU,), training=training)
        for training, graph, _ in graphs
    )
    return found if found and alike else []


def _in_a_row(layers: dict[fx.Node, nn.Module]) -> list[NormPool]:
    found = []
    for node, norm in layers.items():
        after = list(islice(_only_users(node), 2))
        if isinstance(norm, nn.BatchNorm2d) and _can_be_fused(norm) and _halve_and_rectify(after, layers):
            others = str(after[0].target), str(after[1].target)
            found.append(NormPool(str(node.target), others, _is_only_user(node, layers)))
    return found


def _is_only_user(node: fx.Node, layers: dict[fx.Node, nn.Module]) -> bool:
    """Whether a layer is called with what a convolution computes for it alone, which keeps no output."""
    before = node.args[0]
    return isinstance(before, fx.Node) and type(layers.get(before)) is nn.Conv2d and len(before.users) == 1


def fuse_norm_pools(model: nn.Module, found: list[NormPool]) -> None:
    """Put a ``NormPoolReLU`` in place of the layers found; parameters and buffers keep their names.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2))
        >>> fuse_norm_pools(model, norm_pools(model))
        >>> [type(layer).__name__ for layer in model]
        ['NormPoolReLU', 'Identity', 'Identity']
    """
    for name, others, own_inputs in found:
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        model.set_submodule(name, NormPoolReLU(norm, own_inputs=own_inputs))
        for other in others:
            model.set_submodule(other, nn.Identity())


def _only_users(node: fx.Node) -> Iterator[fx.Node]:
    while len(node.users) == 1:
        node = next(iter(node.users))
        yield node


def _can_be_fused(norm: nn.BatchNorm2d) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
    )


def _halve_and_rectify(nodes: list[fx.Node], layers: dict[fx.Node, nn.Module]) -> bool:
    found = [layers.get(node) for node in nodes]
    pools = [layer for layer in found if type(layer) is nn.MaxPool2d and halves(layer)]
    return len(pools) == 1 and any(type(layer) is nn.ReLU for layer in found)


def _applies(inputs: Tensor) -> bool:
    return (
        inputs.dtype in (torch.float32, torch.bfloat16)
        and inputs.device.type == "cpu"
        and inputs.dim() == 4
        and min(inputs.shape) > 0
        and min(inputs.shape[2:]) > 1
        and inputs.is_contiguous(memory_format=torch.channels_last)
        and (has_team() or torch.get_num_threads() <= MOST_THREADS)
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, settings: Settings) -> Tensor:
        from hqde.training import norm_pool_kernels as kernels  # numba takes a second to import

        running, eps, momentum, ctx.own_inputs = settings
        count, channels, height, width = inputs.shape
        size = (count, channels, height // 2, width // 2)
        out = torch.empty(size, dtype=inputs.dtype, memory_format=torch.channels_last)
        found, numbers = _array(out), np.empty((2, channels))
        chosen, reached = np.empty(found.shape, np.uint8), np.empty_like(found)
        learnt = weight.detach().numpy(), bias.detach().numpy()
        kernels.normalised(_array(inputs), learnt, running, eps, momentum, numbers, found, chosen, reached)
        ctx.save_for_backward(inputs, weight, bias)
        ctx.kept = numbers, chosen, reached
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from hqde.training import norm_pool_kernels as kernels

        inputs, weight, bias = ctx.saved_tensors
        numbers, chosen, reached = ctx.kept
        if ctx.own_inputs:
            increment_version(inputs)  # whoever reads it after all is told
            found = inputs.detach()
        else:
            found = inputs.clone()
        learnt = weight.detach().numpy(), bias.detach().numpy()
        to_weight, to_bias = torch.empty_like(weight), torch.empty_like(bias)
        towards = to_weight.numpy(), to_bias.numpy()
        gradients = _array(gradient.contiguous(memory_format=torch.channels_last))
        kernels.sent_back(_array(found), learnt, numbers, chosen, reached, gradients, towards)
        return found, to_weight, to_bias, None


def _array(images: Tensor) -> Array:
    """The memory of channels-last images as an array ``(n, h, w, c)``, bfloat16 as the bits."""
    rows = images.detach().permute(0, 2, 3, 1)
    if rows.dtype == torch.bfloat16:
        return rows.view(torch.int16).numpy().view(np.uint16)
    found: Array = rows.numpy()
    return found
