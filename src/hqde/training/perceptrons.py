"""Which models are perceptrons, whose steps are compiled as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from hqde.models import Dropout, called_once, is_hooked
from hqde.training.stacked_optimizers import parameters_of
from hqde.training.worker import Worker


@dataclass(frozen=True)
class Stage:
    """A linear layer, and what comes before the next one, in this order.

    Attributes:
        linear: its name.
        norm: name of a batch normalisation; empty if there is none.
        eps, momentum: of the normalisation.
        relu: whether a ReLU follows.
        dropout: place of a dropout among the model's; -1 if there is none.
    """

    linear: str
    norm: str = ""
    eps: float = 0.0
    momentum: float = 0.0
    relu: bool = False
    dropout: int = -1

    @property
    def bare(self) -> bool:
        """Whether nothing follows."""
        return self == Stage(self.linear)


@dataclass(frozen=True)
class Perceptron:
    """A model that is a chain of stages, the last of them a linear layer alone.

    ``torch.vmap`` would train it too; of what that takes, three quarters are spent on calls and copies.

    Attributes:
        stages: in order.
        places: by name, where a parameter stands in a worker's row of parameters, and its shape.
        flattens: whether it begins by making a row of each example.
    """

    stages: tuple[Stage, ...]
    places: Mapping[str, tuple[slice, torch.Size]]
    flattens: bool

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str]) -> Perceptron | None:
        """The chain that a model is; ``None`` if it is something else.

        Args:
            model: with its layers as PyTorch and HQDE make them.
            names: of the parameters that are trained, in the order in which they stand in a row.

        Example:
            >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
            >>> [stage.linear for stage in Perceptron.of(net, [n for n, _ in net.named_parameters()]).stages]
            ['0', '2']
            >>> Perceptron.of(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), ["0.weight", "0.bias"]) is None
            True
        """
        stages, flattens = _stages(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        used = {stage.linear for stage in stages} | {stage.norm for stage in stages if stage.norm}
        values = [*parameters, *dict(model.named_buffers())]
        if not stages or not stages[-1].bare or set(names) != set(parameters):
            return None
        if any(name.rpartition(".")[0] not in used for name in values) or _does_more(model):
            return None
        places, start = {}, 0
        for name in names:
            shape = parameters[name].shape
            places[name] = (slice(start, start + shape.numel()), shape)
            start += shape.numel()
        return cls(tuple(stages), places, flattens)

    def takes(self, inputs: object) -> bool:
        """Whether compiled steps do what the model does with inputs ``(w, n, …)``."""
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.float32:
            return False
        normed = any(stage.norm for stage in self.stages)
        return (inputs.ndim == 3 or self.flattens) and inputs.shape[1] > normed  # one row has no variance


def perceptron_of(worker: Worker) -> Perceptron | None:
    """The chain that a worker's model is, where stacks are trained as such: on CPUs, in fp32."""
    if worker.device.type != "cpu" or worker.spec.recipe.precision != "fp32":
        return None
    trained = {id(parameter) for parameter in parameters_of(worker.optimizer)}
    return Perceptron.of(worker.model, [n for n, p in worker.model.named_parameters() if id(p) in trained])


def _stages(model: nn.Module) -> tuple[list[Stage], bool]:
    """The stages of a chain, nothing where the model is none; and whether it flattens its inputs first."""
    graph, layers = called_once(model, training=True, leaves=(Dropout,))
    nodes = [] if graph is None else list(graph.nodes)
    stages: list[Stage] = []
    flattens = False
    dropouts = [id(module) for module in model.modules() if isinstance(module, Dropout)]
    for before, node in pairwise(nodes):
        if node.op == "output":
            return (stages, flattens) if node.args == (before,) else ([], False)
        layer = layers.get(node)
        if before.op == "placeholder" and _flattens(node, layer, before):
            flattens = True
            continue
        if layer is None or node.args != (before,):
            break
        if type(layer) is nn.Linear:
            stages.append(Stage(str(node.target)))
            continue
        grown = _grown(stages[-1], layer, str(node.target), dropouts) if stages else None
        if grown is None:
            break
        stages[-1] = grown
    return [], False


def _does_more(model: nn.Module) -> bool:
    """Whether a model, or a layer, has a mode of its own, or hooks, which its graph does not show."""
    own_mode = any(type(module).train is not nn.Module.train for module in model.modules())
    return own_mode or any(is_hooked(module) for module in model.modules())


def _flattens(node: fx.Node, layer: nn.Module | None, before: fx.Node) -> bool:
    if layer is not None:
        return (
            type(layer) is nn.Flatten
            and (layer.start_dim, layer.end_dim) == (1, -1)
            and node.args == (before,)
        )
    return (node.op, node.target, node.args, node.kwargs) == ("call_method", "flatten", (before, 1), {})


def _grown(last: Stage, layer: nn.Module, name: str, dropouts: Sequence[int]) -> Stage | None:
    """A stage with another layer; ``None`` if that does not belong there."""
    kind = type(layer)
    if kind is nn.Identity:
        return last
    if isinstance(layer, nn.BatchNorm1d) and kind is nn.BatchNorm1d and last.bare:
        usual = layer.track_running_stats and layer.momentum is not None
        usual = usual and layer.weight is not None and layer.bias is not None
        return replace(last, norm=name, eps=layer.eps, momentum=layer.momentum or 0.0) if usual else None
    if kind is nn.ReLU and not last.relu and last.dropout < 0:
        return replace(last, relu=True)
    if kind is Dropout and last.dropout < 0:
        return replace(last, dropout=dropouts.index(id(layer)))
    return None
