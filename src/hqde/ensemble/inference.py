"""Models made ready to predict quickly: fewer operations, and narrower numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hqde.ensemble.int8 import Int8Conv2d, quantise_convolutions
from hqde.errors import ConfigError, did_you_mean
from hqde.models import HalvingMaxPool, called_once, flows_alike, halves

InferencePrecision = Literal["fp32", "bf16", "int8"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

REPLACED = (*CONVOLUTIONS, nn.MaxPool2d)


def ready_for_inference(
    model: nn.Module,
    precision: InferencePrecision,
    run: Callable[[nn.Module], object] = lambda _: None,
) -> nn.Module:
    """A copy in evaluation mode that predicts the same but for rounding, and faster.

    Every batch normalisation that follows a convolution is folded into its weights, where ``forward`` can be
    traced (it cannot if it branches on values, say); 2 × 2 max-pools become comparisons of whole rows, to the
    same bits. With ``"bf16"`` weights and activations are bfloat16, which has 8 bits of precision and the
    range of float32; max-pools that a ReLU follows then compare integers, to the same bits again. With
    ``"int8"`` convolutions also compute in 8-bit integers, on a CPU that has VNNI, and on levels that span
    what they met in ``run``.

    Args:
        model: left as it is.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"``.
        run: for ``"int8"``, calls the model it is given on rows like those to come, as it will be called.

    Raises:
        ConfigError: another precision; for ``"int8"``, a model that cannot be traced or has no convolutions,
            a processor without 8-bit instructions, or no rows.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        >>> [type(layer).__name__ for layer in ready_for_inference(net, "fp32").children()]
        ['Conv2d', 'Identity', 'ReLU']

    Source: Jacob et al. 2018, "Quantization and training of neural networks", section 3.2 (folding).
    """
    known = get_args(InferencePrecision)
    if precision not in known:
        raise ConfigError(f"unknown precision '{precision}' of predictions; {did_you_mean(precision, known)}")
    if precision != "int8" and not any(isinstance(layer, REPLACED) for layer in model.modules()):
        ready = copy.deepcopy(model).eval()
        return ready if precision == "fp32" else InBfloat16(ready)
    graph, layers = called_once(model)
    ready = copy.deepcopy(model).eval()
    layers = {node: ready.get_submodule(str(node.target)) for node in layers}
    rectified = {str(node.target) for node in layers if _goes_to_relu(node, ready)}
    _fold_normalisations(ready, layers)
    for name, module in list(ready.named_modules()):
        if type(module) is nn.MaxPool2d and halves(module) and name:
            ready.set_submodule(name, HalvingMaxPool(as_integers=precision != "fp32" and name in rectified))
    ready = ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "int8":
        if graph is None:
            raise ConfigError(
                f"torch.fx cannot trace {type(model).__name__}, so int8 does not know where its numbers go: "
                "take 'bf16'"
            )
        quantise_convolutions(ready, list(layers), run)
    if graph is not None and not flows_alike(ready, graph, leaves=(HalvingMaxPool, Int8Conv2d)):
        if precision == "int8":
            raise ConfigError(
                f"{type(model).__name__} does something else with other layers in place of its own, so int8 "
                "cannot replace them: take 'bf16'"
            )
        ready = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "fp32":
        return ready
    return InBfloat16(ready, narrow_inputs=not _begins_with_levels(ready, graph))


class InBfloat16(nn.Module):
    """A model in bfloat16 that takes and gives what it did before.

    Args:
        model: becomes bfloat16, in place.
        narrow_inputs: whether its inputs do.
    """

    def __init__(self, model: nn.Module, *, narrow_inputs: bool = True) -> None:
        super().__init__()
        self.model, self.narrow_inputs = model.bfloat16(), narrow_inputs

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The model's own output."""
        if not self.narrow_inputs:
            return self.model(*inputs, **named)
        return self.model(*map(_narrow, inputs), **{name: _narrow(value) for name, value in named.items()})


def _fold_normalisations(model: nn.Module, layers: dict[fx.Node, nn.Module]) -> None:
    """Put convolutions with the normalisation in them in place, and nothing where that was."""
    for node, norm in layers.items():
        before = node.args[0] if node.args else None
        if not isinstance(norm, NORMALISATIONS) or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        convolution = layers.get(before)
        plain = type(norm) in NORMALISATIONS and type(convolution) in CONVOLUTIONS
        if plain and isinstance(convolution, CONVOLUTIONS):
            model.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            model.set_submodule(str(node.target), nn.Identity())


def _goes_to_relu(node: fx.Node, model: nn.Module) -> bool:
    users = [user for user in node.users if user.op == "call_module"]
    return len(users) == len(node.users) == 1 and type(model.get_submodule(str(users[0].target))) is nn.ReLU


def _begins_with_levels(model: nn.Module, graph: fx.Graph | None) -> bool:
    """Whether all inputs go to convolutions in 8 bits, which round them by themselves."""
    nodes = [] if graph is None else [node for node in graph.nodes if node.op == "placeholder"]
    users = [user for node in nodes for user in node.users]
    called = [model.get_submodule(str(user.target)) for user in users if user.op == "call_module"]
    return len(called) == len(users) > 0 and all(type(layer) is Int8Conv2d for layer in called)


def _narrow(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
