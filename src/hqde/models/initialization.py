"""Starting values of the reference networks."""

from __future__ import annotations

from torch import nn


def initialize(model: nn.Module, *, head: nn.Linear) -> None:
    """Set every weight of ``model`` in place, drawing from torch's global generator.

    Convolutions and hidden linear layers: normal with variance ``2 / fan_in``, which keeps the second moment
    of activations through ReLU (He et al., "Delving Deep into Rectifiers", 2015, eq. 10). The head: uniform
    within ``1 / sqrt(fan_in)``, so that first outputs are small and the first loss is near ``log(classes)``.
    Biases 0; normalisation scales 1 and shifts 0.

    Args:
        model: the network.
        head: its last layer.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module is head:
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
