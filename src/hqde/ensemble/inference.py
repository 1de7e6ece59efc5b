"""Models made ready to predict quickly: fewer operations, and narrower numbers."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hqde.errors import ConfigError, did_you_mean

InferencePrecision = Literal["fp32", "bf16"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def ready_for_inference(model: nn.Module, precision: InferencePrecision) -> nn.Module:
    """A copy in evaluation mode that predicts the same but for rounding, and faster.

    Every batch normalisation that follows a convolution is folded into its weights, where ``forward`` can be
    traced (it cannot if it branches on values, say); 2 × 2 max-pools become comparisons of whole rows, to the
    same bits. With ``"bf16"`` weights and activations are bfloat16, which has 8 bits of precision and the
    range of float32; max-pools that a ReLU follows then compare integers, to the same bits again.

    Args:
        model: left as it is.
        precision: ``"fp32"`` or ``"bf16"``.

    Raises:
        ConfigError: another precision.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        >>> [type(layer).__name__ for layer in ready_for_inference(net, "fp32").children()]
        ['Conv2d', 'Identity', 'ReLU']

    Source: Jacob et al. 2018, "Quantization and training of neural networks", section 3.2 (folding).
    """
    known = get_args(InferencePrecision)
    if precision not in known:
        raise ConfigError(f"unknown precision '{precision}' of predictions; {did_you_mean(precision, known)}")
    ready = copy.deepcopy(model).eval()
    rectified = _fold_normalisations(ready)
    for name, module in list(ready.named_modules()):
        if type(module) is nn.MaxPool2d and _halves(module) and name:
            ready.set_submodule(name, HalvingMaxPool(as_integers=precision == "bf16" and name in rectified))
    ready = ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return InBfloat16(ready) if precision == "bf16" else ready


class InBfloat16(nn.Module):
    """A model in bfloat16 that takes and gives what it did before.

    Args:
        model: becomes bfloat16, in place.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.bfloat16()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Floating inputs become bfloat16; the output is the model's own."""
        return self.model(*map(_narrow, inputs), **{name: _narrow(value) for name, value in named.items()})


class HalvingMaxPool(nn.Module):
    """``nn.MaxPool2d(2)``, to the bit, without the positions of the largest values.

    Args:
        as_integers: compare bfloat16 numbers as the integers that their bits are, three times as fast. Right
            where a ReLU follows: only among negative numbers is the order another one, and a NaN whose sign
            bit is set may give way to a number.

    >>> image = torch.tensor([[[[1.0, 2.0, 9.0], [4.0, 3.0, 9.0]]]])
    >>> HalvingMaxPool()(image)
    tensor([[[[4.]]]])
    """

    def __init__(self, *, as_integers: bool = False) -> None:
        super().__init__()
        self.as_integers = as_integers

    def forward(self, inputs: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` to ``(n, c, h // 2, w // 2)``."""
        if self.as_integers and inputs.dtype == torch.bfloat16:
            return self._largest(inputs.view(torch.int16)).view(torch.bfloat16)
        return self._largest(inputs)

    def _largest(self, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[-2] // 2 * 2, inputs.shape[-1] // 2 * 2
        points = inputs.movedim(-3, -1)[..., :height, :width, :]  # contiguous where convolutions are fast
        lines = torch.maximum(points[..., 0::2, :, :], points[..., 1::2, :, :])
        return torch.maximum(lines[..., 0::2, :], lines[..., 1::2, :]).movedim(-1, -3)


def _halves(pool: nn.MaxPool2d) -> bool:
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (pool.kernel_size, pool.stride)]
    plain = (pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices) == (0, 1, False, False)
    return plain and pairs == [(2, 2), (2, 2)]


def _fold_normalisations(model: nn.Module) -> set[str]:
    """Put convolutions with the normalisation in them in place, and nothing where that was.

    Returns:
        names of the modules whose output goes to a ReLU and nowhere else.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # noqa: BLE001 - it runs the user's code on stand-ins for values, which may raise anything
        return set()
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    rectified = {
        str(node.target)
        for node in graph.nodes
        if node.op == "call_module" and calls[node.target] == 1 and _goes_to_relu(node, modules)
    }
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in NORMALISATIONS:
            continue
        before = node.args[0]
        if before.op != "call_module" or type(modules[before.target]) not in CONVOLUTIONS:
            continue
        if len(before.users) > 1 or calls[before.target] > 1 or calls[node.target] > 1:
            continue
        model.set_submodule(before.target, fuse_conv_bn_eval(modules[before.target], modules[node.target]))
        model.set_submodule(node.target, nn.Identity())
    return rectified


def _goes_to_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    users = [user for user in node.users if user.op == "call_module"]
    return len(users) == len(node.users) == 1 and type(modules[str(users[0].target)]) is nn.ReLU


def _narrow(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
