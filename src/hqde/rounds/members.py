"""From committed weights to an ensemble, and its look at the validation split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hqde.backends import Backend
from hqde.data import Inputs, SubsetExamples, move_inputs
from hqde.ensemble import BATCH_SIZE, Ensemble, Member, drop_outliers
from hqde.errors import NonFiniteError
from hqde.metrics import accuracy, disagreement, effective_members, gaussian_nll, nll, rmse
from hqde.models import call_model
from hqde.rounds.events import Validation
from hqde.rounds.experiment import Experiment
from hqde.seeding import seeded
from hqde.topology import Groups
from hqde.training import INITIAL_EFFICIENCY, Precision, example_losses
from hqde.weights import Layout, Weights

# Rows that an update is judged on, where the policy says so.
HELD_OUT_ROWS = 512


class InAutocast(nn.Module):
    """A model whose products are made in another precision.

    Args:
        model: any.
        device: the kind it is on.
        dtype: of the products.
    """

    def __init__(self, model: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.device, self.dtype = model, device, dtype

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The model's own output."""
        with torch.autocast(self.device, dtype=self.dtype):
            return self.model(*inputs, **named)


class MemberPool:
    """Models that committed weights are poured into, built once and used every epoch."""

    def __init__(self, experiment: Experiment, provenance: dict[str, object]) -> None:
        self._experiment = experiment
        self._provenance = provenance
        self._models: dict[int, tuple[nn.Module, Layout]] = {}
        self._held_out: list[tuple[Inputs, Tensor]] | None = None

    def ensemble(
        self,
        groups: Groups,
        committed: Sequence[Weights],
        efficiency: Mapping[int, float],
        *,
        first: int = 0,
    ) -> Ensemble:
        """One member per group, numbered from ``first``; its score is the mean efficiency of its workers."""
        experiment = self._experiment
        members = []
        for index, (group, weights) in enumerate(zip(groups, committed, strict=True), start=first):
            model = self._model(index, group[0])
            # Scores are made of training losses, of which a private run tells nothing.
            told = {} if experiment.privacy.enabled else efficiency
            scores = [told.get(worker, INITIAL_EFFICIENCY) for worker in group]
            self._models[index][1].write(weights, model)
            members.append(
                Member(
                    member_id=index,
                    spec=experiment.model_of(experiment.group_of(group[0])),
                    model=model,
                    score=sum(scores) / len(scores),
                    dropout_rate=experiment.dropout_of(group[0]),
                )
            )
        return Ensemble(
            members,
            schema=experiment.splits.schema,
            normalization=experiment.normalization,
            target_scale=experiment.target_scale,
            loss=experiment.recipe_of(0).loss_for(experiment.splits.schema.task),
            combiner=experiment.combiner,
            provenance=self._provenance,
        )

    def validate(self, ensemble: Ensemble, backend: Backend, groups: Groups) -> Validation:
        """The ensemble and its members on the validation split.

        Classes are predicted in the precision that a member is trained in, because that is quicker.
        """
        examples = self._experiment.splits.validation
        if ensemble.schema.task == "classification":
            precisions = [self._experiment.recipe_of(group[0]).precision for group in groups]
            pairs = zip(ensemble.members, precisions, strict=True)
            ensemble = ensemble.with_members(
                [member.with_model(self._as_trained(member.model, precision)) for member, precision in pairs]
            )
        predictions, targets = backend.predict_members(ensemble, examples), examples.targets
        combined = ensemble.combine(predictions)
        if ensemble.schema.task == "regression":
            mean, variance = combined.unbind(dim=-1)
            error = float(rmse(mean, targets))
            found = tuple(
                {"member": i, "rmse": float(rmse(p[:, 0], targets))} for i, p in enumerate(predictions)
            )
            trained_nll = ensemble.loss == "gaussian_nll"
            loss = float(gaussian_nll(mean, variance, targets)) if trained_nll else error**2
            return Validation(loss, None, error, found, None, None)
        found = tuple(
            {"member": i, "nll": float(nll(p, targets)), "accuracy": float(accuracy(p, targets))}
            for i, p in enumerate(predictions)
        )
        several = len(predictions) > 1
        return Validation(
            loss=float(nll(combined, targets)),
            accuracy=float(accuracy(combined, targets)),
            rmse=None,
            members=found,
            disagreement=float(disagreement(predictions)) if several else 0.0,
            effective_members=float(effective_members(predictions)) if several else 1.0,
        )

    def sound_members(
        self, groups: Groups, committed: Sequence[Weights]
    ) -> tuple[list[int], tuple[str, ...]]:
        """Members whose loss on validation rows is no outlier, and a sentence for each that is one."""
        losses = [self.held_out_loss(i, g, w) for i, (g, w) in enumerate(zip(groups, committed, strict=True))]
        weights = drop_outliers(torch.full((len(losses),), 1.0 / len(losses)), torch.tensor(losses))
        kept = weights.nonzero().flatten().tolist()
        middle = sorted(losses)[(len(losses) - 1) // 2]
        return kept, tuple(
            f"member {i} is left out: its held-out loss is {loss:.4g}, the median {middle:.4g}"
            for i, loss in enumerate(losses)
            if i not in kept
        )

    def held_out_loss(self, index: int, group: Sequence[int], weights: Weights) -> float:
        """The loss of one member with these weights on the first validation rows; infinite if not finite."""
        rows = self._experiment.splits.validation
        rows = SubsetExamples(rows, torch.arange(min(HELD_OUT_ROWS, len(rows))))
        ensemble = self.ensemble((tuple(group),), (weights,), {}, first=index)
        try:
            [found] = ensemble.predict_members(rows)
        except NonFiniteError:
            return math.inf
        if ensemble.schema.task == "classification":
            return float(nll(found, rows.targets))
        mean, variance = found.unbind(dim=-1)
        if ensemble.loss == "gaussian_nll":
            return float(gaussian_nll(mean, variance, rows.targets))
        return float(rmse(mean, rows.targets)) ** 2

    def held_out_slope(self, index: int, group: Sequence[int], weights: Weights) -> tuple[float, Tensor]:
        """The loss of one member with these weights on the same rows, as it is trained, and its slope.

        Returns:
            The mean loss, in standardised units for numbers, without label smoothing; and its gradient
            ``(p,)`` in the parameters, float64 on the CPU, 0 for frozen ones.
        """
        experiment, schema = self._experiment, self._experiment.splits.schema
        model, recipe = self._model(index, group[0]), experiment.recipe_of(group[0])
        layout, device = self._models[index][1], torch.device(experiment.device)
        layout.write(weights, model)
        named = dict(model.named_parameters())
        slots = [slot for slot in layout.parameters if named[slot.name].requires_grad]
        trained = [named[slot.name] for slot in slots]
        # Nothing scales this loss for half precision.
        model = self._as_trained(model, "fp32" if recipe.precision == "fp16-mixed" else recipe.precision)
        total, slope = 0.0, torch.zeros(layout.num_parameters, dtype=torch.float64)
        batches = self._held_out_batches()
        count = sum(len(targets) for _, targets in batches)
        for inputs, targets in batches:
            with torch.enable_grad():
                outputs = call_model(model, move_inputs(experiment.normalization.apply(inputs), device))
                goals = experiment.target_scale.apply(targets).to(device)
                loss = example_losses(outputs, goals, recipe.loss_for(schema.task)).sum() / count
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            total += float(loss.detach())
            for slot, gradient in zip(slots, gradients, strict=True):
                if gradient is not None:
                    slope[slot.offset : slot.end] += gradient.flatten().cpu()
        return total, slope

    def _held_out_batches(self) -> list[tuple[Inputs, Tensor]]:
        """The rows that updates are judged on, as they are stored."""
        if self._held_out is None:
            examples = self._experiment.splits.validation
            rows = torch.arange(min(HELD_OUT_ROWS, len(examples)))
            self._held_out = [examples.fetch(part) for part in rows.split(BATCH_SIZE)]
        return self._held_out

    def _as_trained(self, model: nn.Module, precision: Precision) -> nn.Module:
        if precision == "fp32":
            return model
        dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
        return InAutocast(model, torch.device(self._experiment.device).type, dtype)

    def _model(self, index: int, worker: int) -> nn.Module:
        if index not in self._models:
            spec = self._experiment.model_of(self._experiment.group_of(worker))
            with seeded(0, "members"):  # the starting weights are overwritten; the caller's streams stay
                model = spec.build(dropout_rate=self._experiment.dropout_of(worker))
            model = model.to(self._experiment.device).eval()
            self._models[index] = (model, Layout.of(model))
        return self._models[index][0]
