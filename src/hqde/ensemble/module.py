"""An ensemble as one torch module, for export to other runtimes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hqde.data import Inputs, Normalization, Schema, TargetScale
from hqde.ensemble.calibration import apply_temperature
from hqde.ensemble.combiners import Combiner
from hqde.ensemble.prediction import Loss, interpret_outputs
from hqde.ensemble.regression import pool_normals
from hqde.models import call_model


class EnsembleModule(nn.Module):
    """Raw inputs to the ensemble's prediction, in one ``forward``.

    Made by ``Ensemble.to_torch_module``; shares the members' models and is in evaluation mode. Unlike
    ``Ensemble`` it checks nothing and keeps gradients, so that it can be exported or differentiated.

    State names: ``members.0.…``, ``members.1.…``, ``weights`` (m,), ``input_mean`` and ``input_std`` (shaped
    to broadcast over rows).
    """

    weights: Tensor
    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        schema: Schema,
        normalization: Normalization,
        target_scale: TargetScale,
        combiner: Combiner,
        weights: Tensor,
        temperature: float,
        loss: Loss,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        self.combiner = combiner
        self.target_scale = target_scale
        self.temperature = temperature
        self.loss: Loss = loss
        self.single_input = schema.input_shape is not None
        trailing = (1, 1) if schema.kind == "image" and normalization.mean.ndim == 1 else ()
        shape = (*normalization.mean.shape, *trailing)
        self.register_buffer("weights", weights.clone())
        self.register_buffer("input_mean", normalization.mean.reshape(shape).clone())
        self.register_buffer("input_std", normalization.std.reshape(shape).clone())
        self.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Probabilities (n, c), or mean and variance (n, 2), for raw inputs (n, …)."""
        ready: Inputs
        if named:
            ready = {name: _as_float32(tensor) for name, tensor in named.items()}
        elif self.single_input:
            ready = (inputs[0].to(torch.float32) - self.input_mean) / self.input_std
        else:
            ready = tuple(_as_float32(tensor) for tensor in inputs)
        predictions = torch.stack(
            [
                interpret_outputs(call_model(model, ready), loss=self.loss, target_scale=self.target_scale)
                for model in self.members
            ]
        )
        if self.loss != "cross_entropy":
            return pool_normals(predictions, self.weights)
        return apply_temperature(self.combiner.pool(predictions, self.weights), self.temperature)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
