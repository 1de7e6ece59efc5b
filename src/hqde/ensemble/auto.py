"""The combiner that held-out rows speak for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from hqde.ensemble.calibration import apply_temperature, fit_temperature
from hqde.ensemble.cross_validation import folds, simplest
from hqde.ensemble.pooling import Combiner, Pooling, weighted_mean
from hqde.ensemble.quantum_combiners import EntanglementCombiner
from hqde.ensemble.stacking import StackingCombiner, cross_validated_losses

LEAST_ROWS = 100


@dataclass(frozen=True)
class AutoCombiner(Pooling):
    """The mean, unless held-out rows speak for `StackingCombiner` or `EntanglementCombiner`.

    Fitting it gives one of the three. Each is fitted with a temperature to four fifths of the rows and judged
    on the last, five times. The first, in this order, is taken whose NLL is no more than two standard errors
    (of the difference, row by row) above the least. Geometric means are far worse than the mean where members
    have not seen all classes, and rule them out; so stacking cannot be taken on trust. With fewer than 100
    rows, for regression, and before it is fitted it is the mean.

    >>> AutoCombiner().combine(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]), torch.ones(2))
    tensor([[0.7500, 0.2500]])
    """

    name: ClassVar[str] = "auto"
    pools_normals: ClassVar[bool] = True

    @property
    def shares(self) -> tuple[float, ...]:
        """None: what it learns is another combiner."""
        return ()

    def fit(self, member_predictions: Tensor, targets: Tensor) -> Combiner:
        """The combiner that the rows speak for, fitted to all of them."""
        from hqde.ensemble.combiners import MeanCombiner  # which knows this one by name

        mean: Combiner = MeanCombiner()
        if targets.is_floating_point() or len(member_predictions) == 1 or len(targets) < LEAST_ROWS:
            return mean
        by_spread = cross_validated_losses(member_predictions, targets)
        stacked = by_spread[simplest(by_spread)]
        losses = torch.stack(
            [
                _held_out_losses(mean, member_predictions, targets),
                stacked,
                _held_out_losses(EntanglementCombiner(), member_predictions, targets),
            ]
        )
        chosen = (mean, StackingCombiner(), EntanglementCombiner())[simplest(losses)]
        fitted: Combiner = chosen if chosen is mean else chosen.fit(member_predictions, targets)  # type: ignore[attr-defined]
        return fitted

    def of_members(self, positions: Sequence[int]) -> Self:  # noqa: ARG002
        """The same."""
        return self

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean."""
        return weighted_mean(member_probs, weights)


def _held_out_losses(combiner: Combiner, member_probs: Tensor, targets: Tensor) -> Tensor:
    """NLL of each row (n,) float64, fitted with a temperature to the other folds."""
    losses = torch.zeros(len(targets), dtype=torch.float64)
    ones = torch.ones(len(member_probs))
    for kept, left in folds(len(targets)):
        part, labels = member_probs[:, kept], targets[kept]
        fitted = combiner.fit(part, labels) if isinstance(combiner, EntanglementCombiner) else combiner
        temperature = fit_temperature(fitted.combine(part, ones), labels)
        probs = apply_temperature(fitted.combine(member_probs[:, left], ones), temperature)
        right = probs.gather(1, targets[left].unsqueeze(1)).squeeze(1)
        losses[left] = -right.clamp_min(torch.finfo(probs.dtype).tiny).double().log().cpu()
    return losses
