"""From committed weights to an ensemble, and its look at the validation split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hqde.backends import Backend
from hqde.data import SubsetExamples
from hqde.ensemble import Ensemble, Member, drop_outliers
from hqde.errors import NonFiniteError
from hqde.metrics import accuracy, disagreement, effective_members, gaussian_nll, nll, rmse
from hqde.rounds.events import Validation
from hqde.rounds.experiment import Experiment
from hqde.seeding import seeded
from hqde.topology import Groups
from hqde.training import INITIAL_EFFICIENCY, Precision
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
            ensemble = ensemble.with_members([self._as_trained(*pair) for pair in pairs])
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

    def _as_trained(self, member: Member, precision: Precision) -> Member:
        if precision == "fp32":
            return member
        dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
        return member.with_model(InAutocast(member.model, torch.device(self._experiment.device).type, dtype))

    def _model(self, index: int, worker: int) -> nn.Module:
        if index not in self._models:
            spec = self._experiment.model_of(self._experiment.group_of(worker))
            with seeded(0, "members"):  # the starting weights are overwritten; the caller's streams stay
                model = spec.build(dropout_rate=self._experiment.dropout_of(worker))
            model = model.to(self._experiment.device).eval()
            self._models[index] = (model, Layout.of(model))
        return self._models[index][0]
