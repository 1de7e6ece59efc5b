"""Convolutions in 8-bit integers, for processors that multiply those twice as fast as bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hqde.errors import ConfigError, NonFiniteError
from hqde.models import Dropout, HalvingMaxPool

LEVELS = 255
WEIGHT_LEVELS = 127
KEEP_LEVELS = (nn.ReLU, HalvingMaxPool, nn.Identity, nn.Dropout, nn.Dropout2d, Dropout)
"""Layers that, in evaluation mode, give levels for levels; a ReLU where 0 is the lowest level."""


@dataclass(frozen=True)
class Scale:
    """Numbers as 8-bit levels: ``value = step · (level − zero)``, level in 0 to 255.

    >>> Scale.covering(-1.0, 4.1)
    Scale(step=0.02, zero=50)
    """

    step: float
    zero: int

    @classmethod
    def covering(cls, least: float, largest: float) -> Scale:
        """The finest scale of 256 levels on which these, all between, and 0 exactly, can be told."""
        least, largest = min(least, 0.0), max(largest, 0.0)
        step = (largest - least) / LEVELS or 1.0
        return cls(step, round(-least / step))

    def levels(self, values: Tensor) -> Tensor:
        """The nearest levels, uint8; what is beyond the ends becomes the end."""
        scaled = values.float().mul(1.0 / self.step).add_(self.zero)
        return scaled.round_().clamp_(0, LEVELS).to(torch.uint8)


class Int8Conv2d(nn.Module):
    """A convolution of 8-bit levels with 8-bit weights, summed exactly in 32 bits.

    Weights have a step of their own for each output channel, the largest weight ÷ 127.

    Args:
        convolution: with zero padding; left as it is.
        inputs: scale of its inputs.
        outputs: scale of what it gives: levels then, else bfloat16 numbers.

    Source: Jacob et al. 2018, "Quantization and training of neural networks", section 2.
    """

    def __init__(self, convolution: nn.Conv2d, inputs: Scale, outputs: Scale | None) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        weight = convolution.weight.detach().float()
        self.weight_steps = weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-30) / WEIGHT_LEVELS
        self.weight = (weight / self.weight_steps[:, None, None, None]).round().to(torch.int8)
        self.bias = None if convolution.bias is None else convolution.bias.detach().float()
        self.stride, self.padding = list(convolution.stride), [int(side) for side in convolution.padding]
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        self._packed: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (n, c, h, w), numbers or levels, to levels or bfloat16 numbers."""
        if inputs.dtype != torch.uint8:
            inputs = self.inputs.levels(inputs)
        if self._packed is None:
            self._packed = torch.ops.onednn.qconv_prepack(
                self.weight, self.weight_steps, self.inputs.step, self.inputs.zero,
                self.stride, self.padding, self.dilation, self.groups, list(inputs.shape),
            )  # fmt: skip
        outputs = self.outputs or Scale(1.0, 0)
        found: Tensor = torch.ops.onednn.qconv2d_pointwise(
            inputs, self.inputs.step, self.inputs.zero,
            self._packed, self.weight_steps, torch.zeros(len(self.weight), dtype=torch.int64), self.bias,
            self.stride, self.padding, self.dilation, self.groups,
            outputs.step, outputs.zero, torch.uint8 if self.outputs else torch.bfloat16, "none", [], "",
        )  # fmt: skip
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights, which are in a form of this processor's."""
        return {**self.__dict__, "_packed": None}


def quantise_convolutions(
    model: nn.Module, called_once: Sequence[fx.Node], run: Callable[[nn.Module], object]
) -> None:
    """Put an ``Int8Conv2d`` in place of every ``nn.Conv2d`` that is called once and pads with zeros.

    Between two of them that only a ReLU, 2 × 2 max-pools and dropout separate, levels are passed on as they
    are: the largest level is that of the largest number, and cutting off below 0 is what a ReLU does.

    Args:
        model: in evaluation mode, in float32; its layers are replaced.
        called_once: calls of its layers that are called at one place only.
        run: calls the model on rows like those to come, which gives the ranges of the convolutions' inputs.

    Raises:
        ConfigError: no such convolution, or a processor whose 8-bit sums overflow.
        NonFiniteError: a convolution got NaN or infinity.
    """
    layers = {node: model.get_submodule(str(node.target)) for node in called_once}
    convolutions = {
        node: layer for node, layer in layers.items() if isinstance(layer, nn.Conv2d) and _can_be_int8(layer)
    }
    if not convolutions:
        raise ConfigError("int8 is for nn.Conv2d with zero padding, and the model has none: take 'bf16'")
    device = next(iter(convolutions.values())).weight.device
    if device.type != "cpu":
        raise ConfigError(f"int8 is for the CPU, and the model is on {device}: take 'bf16' there")
    check_processor()
    scales = _input_scales(model, convolutions, run)
    for node, inputs in scales.items():
        between, following = _up_to_the_next(node, layers, scales)
        outputs = None if following is None else scales[following]
        if outputs is not None:
            for rectifier in (name for name in between if type(layers[name]) is nn.ReLU):
                model.set_submodule(str(rectifier.target), nn.Identity())
        model.set_submodule(str(node.target), Int8Conv2d(convolutions[node], inputs, outputs))


def check_processor() -> None:
    """Refuse a processor, or a PyTorch, whose 8-bit products are not summed exactly.

    Raises:
        ConfigError: with what to take instead.
    """
    wide = nn.utils.skip_init(nn.Conv2d, 64, 1, 1, bias=False)  # draws no random numbers
    nn.init.constant_(wide.weight, float(WEIGHT_LEVELS))
    try:
        found = Int8Conv2d(wide, Scale(1.0, 0), Scale(64.0 * WEIGHT_LEVELS, 0))(
            torch.full((1, 64, 4, 4), LEVELS, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        )
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(f"this PyTorch has no 8-bit convolutions here ({error}): take 'bf16'") from error
    if not bool((found == LEVELS).all()):
        raise ConfigError("8-bit sums overflow on this processor, which has no VNNI: take 'bf16'")


def _can_be_int8(layer: nn.Conv2d) -> bool:
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _input_scales(
    model: nn.Module, convolutions: dict[fx.Node, nn.Conv2d], run: Callable[[nn.Module], object]
) -> dict[fx.Node, Scale]:
    ends: dict[fx.Node, tuple[float, float]] = {}
    handles = []
    for node, layer in convolutions.items():

        def look(_: nn.Module, inputs: tuple[Tensor, ...], node: fx.Node = node) -> None:
            least, largest = (float(end) for end in torch.aminmax(inputs[0].detach()))
            seen = ends.get(node, (least, largest))
            ends[node] = min(seen[0], least), max(seen[1], largest)

        handles.append(layer.register_forward_pre_hook(look))
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    if not ends:
        raise ConfigError(
            "int8 needs rows like those to come, for the ranges of its numbers: give some as data"
        )
    for node, pair in ends.items():
        if not all(map(math.isfinite, pair)):
            raise NonFiniteError(f"the inputs of layer {node.target} range from {pair[0]} to {pair[1]}")
    return {node: Scale.covering(*pair) for node, pair in ends.items()}


def _up_to_the_next(
    node: fx.Node, layers: dict[fx.Node, nn.Module], convolutions: Collection[fx.Node]
) -> tuple[list[fx.Node], fx.Node | None]:
    """The layers between a convolution and the next one, where levels can be passed on to it; else none."""
    between: list[fx.Node] = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node in convolutions:
            return between, node
        if type(layers.get(node)) not in KEEP_LEVELS:
            break
        between.append(node)
    return [], None
