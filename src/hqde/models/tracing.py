"""How data flow through a model."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from typing import Any

from torch import fx, nn

_TRACING = threading.Lock()  # fx patches nn.Module for the whole process


def called_once(
    model: nn.Module, *, training: bool = False, leaves: tuple[type[nn.Module], ...] = ()
) -> tuple[fx.Graph | None, dict[fx.Node, nn.Module]]:
    """The graph of a model's forward pass, and the layers that another may take the place of, in order.

    These are called at one place only, with positional arguments, have one name, and nobody has put a hook on
    them. A copy is traced; the model itself is not called. Whether its code asks what a layer is shows only
    afterwards: see ``flows_alike``.

    Args:
        model: in any mode.
        training: of which mode.
        leaves: classes of layers, beside PyTorch's own, that are not looked into.

    Returns:
        ``None`` and nothing where ``torch.fx`` cannot trace it, because it branches on values, say.

    Example:
        >>> graph, layers = called_once(nn.Sequential(nn.Linear(1, 2), nn.ReLU()))
        >>> [type(layer).__name__ for layer in layers.values()]
        ['Linear', 'ReLU']
    """
    graph = _traced(model, training=training, leaves=leaves)
    if graph is None:
        return None, {}
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    names = Counter(id(layer) for _, layer in model.named_modules(remove_duplicate=False))
    found = {node: model.get_submodule(str(node.target)) for node in nodes if calls[node.target] == 1}
    return graph, {
        node: layer
        for node, layer in found.items()
        if node.args and not node.kwargs and names[id(layer)] == 1 and not is_hooked(layer)
    }


def flows_alike(
    model: nn.Module, graph: fx.Graph, *, leaves: tuple[type[nn.Module], ...], training: bool = False
) -> bool:
    """Whether data still flow as in a graph, once layers were replaced.

    Args:
        model: with the new layers.
        graph: of the model as it was.
        leaves: the new layers' classes.
        training: of which mode.
    """
    now = _traced(model, training=training, leaves=leaves)
    return now is not None and _calls(now) == _calls(graph)


def _calls(graph: fx.Graph) -> list[tuple[str, ...]]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


def _traced(model: nn.Module, *, training: bool, leaves: tuple[type[nn.Module], ...] = ()) -> fx.Graph | None:
    with _TRACING:
        try:
            return _Tracer(leaves).trace(copy.deepcopy(model).train(training))
        except Exception:  # noqa: BLE001 - it runs the user's code on stand-ins for values, which may raise anything
            return None


def is_hooked(layer: nn.Module) -> bool:
    """Whether anybody has put a hook on a layer's calls."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, kind) for kind in kinds)


class _Tracer(fx.Tracer):
    """Leaves the calls of other threads alone, and does not look into some layers."""

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._leaves, self._thread = leaves, threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)
