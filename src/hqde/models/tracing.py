"""How data flow through a model."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn


def called_once(model: nn.Module) -> tuple[fx.Graph | None, dict[fx.Node, nn.Module]]:
    """The graph of a model's forward pass, and its layers that are called at one place only, in order.

    Args:
        model: traced in evaluation mode, and left in the mode it was in.

    Returns:
        ``None`` and nothing where ``torch.fx`` cannot trace it, because it branches on values, say.

    Example:
        >>> graph, layers = called_once(nn.Sequential(nn.Linear(1, 2), nn.ReLU()))
        >>> [type(layer).__name__ for layer in layers.values()]
        ['Linear', 'ReLU']
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        graph = fx.Tracer().trace(model.eval())
    except Exception:  # noqa: BLE001 - it runs the user's code on stand-ins for values, which may raise anything
        return None, {}
    finally:
        for module, training in modes:
            module.training = training
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    return graph, {node: model.get_submodule(str(node.target)) for node in nodes if calls[node.target] == 1}
