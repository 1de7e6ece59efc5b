"""An ensemble as one torch module, for export to other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from hqde.data import Inputs, Normalization, Schema, TargetScale
from hqde.ensemble.calibration import apply_temperature
from hqde.ensemble.combiners import Combiner
from hqde.ensemble.matrix_scaling import MatrixScaling, scale_by_matrix
from hqde.ensemble.prediction import Loss, interpret_outputs
from hqde.ensemble.regression import pool_normals
from hqde.models import call_model

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble


class EnsembleModule(nn.Module):
    """Raw inputs to the ensemble's prediction, in one ``forward``.

    Made by ``Ensemble.to_torch_module``; shares the members' models and is in evaluation mode. Unlike
    ``Ensemble`` it checks nothing and keeps gradients, so that it can be exported or differentiated.

    State names: ``members.0.…``, ``members.1.…``, ``weights`` (m,), ``input_mean`` and ``input_std`` (shaped
    to broadcast over rows); with matrix scaling ``scaling_weight`` (c, c) and ``scaling_bias`` (c,) as well.
    """

    weights: Tensor
    input_mean: Tensor
    input_std: Tensor
    scaling_weight: Tensor | None
    scaling_bias: Tensor | None

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
        matrix_scaling: MatrixScaling | None,
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
        scaling = (None, None) if matrix_scaling is None else (matrix_scaling.weight, matrix_scaling.bias)
        for name, numbers in zip(("scaling_weight", "scaling_bias"), scaling, strict=True):
            self.register_buffer(name, None if numbers is None else numbers.to(torch.float32, copy=True))
        self.eval()

    @classmethod
    def of(cls, ensemble: Ensemble) -> Self:
        """What an ensemble is, with its members' own models."""
        return cls(
            [member.model for member in ensemble.members],
            schema=ensemble.schema,
            normalization=ensemble.normalization,
            target_scale=ensemble.target_scale,
            combiner=ensemble.combiner,
            weights=ensemble.combiner.weights(ensemble.scores),
            temperature=ensemble.temperature,
            matrix_scaling=ensemble.matrix_scaling,
            loss=ensemble.loss,
        )

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
        probs = apply_temperature(self.combiner.pool(predictions, self.weights), self.temperature)
        if self.scaling_weight is None or self.scaling_bias is None:
            return probs
        return scale_by_matrix(probs, self.scaling_weight, self.scaling_bias)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
