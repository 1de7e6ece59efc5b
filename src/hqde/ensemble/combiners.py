"""How member probabilities become one prediction.

Every combiner weighs members (``weights``) and pools their probabilities (``pool``); ``combine`` does both.
Some learn the weights from held-out rows (``fit``). Adding one: a frozen dataclass on ``Pooling``, or on
``SharePooling`` if it learns, with a ``name``, here or in a file of its own, and a line in ``COMBINERS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from hqde.ensemble.auto import LEAST_ROWS, AutoCombiner
from hqde.ensemble.pooling import Combiner as Combiner
from hqde.ensemble.pooling import (
    Pooling,
    softmax_weights,
    weighted_geometric_mean,
    weighted_mean,
)
from hqde.ensemble.quantum_combiners import EntanglementCombiner, SuperpositionCombiner
from hqde.ensemble.stacking import StackingCombiner
from hqde.ensemble.voting import PluralityCombiner, WeightedVoteCombiner
from hqde.errors import ConfigError, PreconditionError, did_you_mean


@dataclass(frozen=True)
class MeanCombiner(Pooling):
    """The mean of the members' probabilities: ``p(c) = Σ_m p_m(c) / m``.

    Probabilities are averaged, not logits: the mean's NLL is never above the members' mean NLL (Jensen).
    Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty estimation using deep
    ensembles" (2017).

    >>> MeanCombiner().combine(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]), torch.ones(2))
    tensor([[0.7500, 0.2500]])
    """

    name: ClassVar[str] = "mean"
    pools_normals: ClassVar[bool] = True

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean."""
        return weighted_mean(member_probs, weights)


@dataclass(frozen=True)
class EfficiencyCombiner(Pooling):
    """The mean of the probabilities weighted by ``softmax(scores)``: ``p(c) = Σ_m w_m p_m(c)``.

    Scores lie in [0.1, 1], so no member weighs more than e^0.9 ≈ 2.5 times another.

    >>> probs = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> EfficiencyCombiner().combine(probs, torch.tensor([1.0, 0.1]))
    tensor([[0.7109, 0.2891]])
    """

    name: ClassVar[str] = "efficiency"
    pools_normals: ClassVar[bool] = True

    def weights(self, scores: Tensor) -> Tensor:
        """The softmax of the scores."""
        return softmax_weights(scores)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean."""
        return weighted_mean(member_probs, weights)


@dataclass(frozen=True)
class LogPoolCombiner(Pooling):
    """The normalised geometric mean: ``p(c) ∝ exp(Σ_m log p_m(c) / m)``, a logarithmic opinion pool.

    A class that one member rules out is all but ruled out. Probabilities are kept at or above the smallest
    normal number of their dtype (1.2e-38 for float32) before the logarithm, so that members which rule out
    every class between them still give a distribution. Genest, Zidek, "Combining probability distributions:
    a critique and an annotated bibliography" (1986).

    >>> LogPoolCombiner().combine(torch.tensor([[[0.8, 0.2]], [[0.5, 0.5]]]), torch.ones(2))
    tensor([[0.6667, 0.3333]])
    """

    name: ClassVar[str] = "log_pool"
    pools_normals: ClassVar[bool] = False

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted geometric mean, normalised."""
        return weighted_geometric_mean(member_probs, weights)


@dataclass(frozen=True)
class MedianCombiner(Pooling):
    """The median of the members' probabilities, class by class, normalised.

    Fewer than half of the members cannot move any class beyond what the others say. Where the median of all
    classes is 0 (members that contradict each other with certainty) it is the mean. Scores play no part:
    members are counted, and those with weight 0 left out.

    >>> MedianCombiner().combine(torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.0, 1.0]]]), torch.ones(3))
    tensor([[0.8000, 0.2000]])

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", on predictions instead of gradients.
    """

    name: ClassVar[str] = "median"
    pools_normals: ClassVar[bool] = False

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The median of members with a weight, normalised."""
        return _trimmed(member_probs, weights, 0.5)


@dataclass(frozen=True)
class TrimmedMeanCombiner(Pooling):
    """The mean of the middle half of the members' probabilities, class by class, normalised.

    Of m members the ⌊m / 4⌋ smallest and as many of the largest probabilities of every class are left out,
    so that so many members cannot move it beyond what the others say. With m < 4 it is the mean.

    >>> probs = torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.7, 0.3]], [[0.0, 1.0]]])
    >>> TrimmedMeanCombiner().combine(probs, torch.ones(4))
    tensor([[0.7500, 0.2500]])

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", on predictions instead of gradients.
    """

    name: ClassVar[str] = "trimmed_mean"
    pools_normals: ClassVar[bool] = False

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The mean of the middle half of members with a weight, normalised."""
        return _trimmed(member_probs, weights, 0.25)


AnyCombiner = (
    MeanCombiner
    | EfficiencyCombiner
    | LogPoolCombiner
    | MedianCombiner
    | TrimmedMeanCombiner
    | StackingCombiner
    | SuperpositionCombiner
    | EntanglementCombiner
    | PluralityCombiner
    | WeightedVoteCombiner
)
COMBINERS: dict[str, type[AnyCombiner]] = {
    combiner.name: combiner
    for combiner in (
        MeanCombiner,
        EfficiencyCombiner,
        LogPoolCombiner,
        MedianCombiner,
        TrimmedMeanCombiner,
        StackingCombiner,
        SuperpositionCombiner,
        EntanglementCombiner,
        PluralityCombiner,
        WeightedVoteCombiner,
    )
}


def drop_outliers(weights: Tensor, held_out_losses: Tensor, *, num_deviations: float = 5.0) -> Tensor:
    """Weights with 0 for members whose held-out loss is an outlier among the members' losses.

    A loss is one if it is above the median by more than ``num_deviations`` robust standard deviations
    (MAD / 0.6745, but at least a tenth of the median, so that members which are nearly alike all stay). A
    loss that is not finite always is. Half of the members or more never are.

    Args:
        weights: ``(m,)``, from a combiner.
        held_out_losses: ``(m,)`` mean losses on rows that no member was trained on.
        num_deviations: above 0.

    Returns:
        ``(m,)`` summing to 1.

    Raises:
        PreconditionError: shapes differ, or no loss is finite.

    Example:
        >>> drop_outliers(torch.full((4,), 0.25), torch.tensor([0.30, 0.31, 0.33, 2.4]))
        tensor([0.3333, 0.3333, 0.3333, 0.0000])
    """
    losses = held_out_losses.double()
    sound = torch.isfinite(losses)
    if losses.shape != weights.shape or losses.ndim != 1 or not bool(sound.any()):
        raise PreconditionError(
            f"dropping outliers needs a held-out loss for each of {len(weights)} members, at least one "
            f"of them finite, got {held_out_losses.tolist()}."
        )
    middle = losses.masked_fill(~sound, torch.inf).median()
    if bool(torch.isfinite(middle)):
        deviation = torch.maximum((losses[sound] - middle).abs().median() / 0.6745, 0.1 * middle.abs())
        sound &= losses <= middle + num_deviations * deviation
    kept = weights * sound.to(weights.dtype)
    return kept / kept.sum() if float(kept.sum()) > 0 else weights


def make_combiner(name: str, settings: Mapping[str, Any] | None = None) -> Combiner:
    """The combiner of that name.

    Args:
        name: one of ``COMBINERS``, or ``"auto"``.
        settings: its fields, such as what `combiner_settings` gave; left out, none is fitted.

    Raises:
        ConfigError: no combiner has the name, or it has no such setting.

    >>> make_combiner("log_pool"), make_combiner("stacking", {"shares": [0.5, 0.5]})
    (LogPoolCombiner(), StackingCombiner(shares=(0.5, 0.5)))
    """
    known_names = {**COMBINERS, AutoCombiner.name: AutoCombiner}
    if name not in known_names:
        raise ConfigError(f"unknown combiner {name!r}: {did_you_mean(str(name), known_names)}")
    kind: type[Any] = known_names[name]
    given = dict(settings or {})
    known = [field.name for field in fields(kind)]
    for setting in given:
        if setting not in known:
            raise ConfigError(f"combiner {name!r} has no setting {setting!r}: {did_you_mean(setting, known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    combiner: Combiner = kind(**values)
    return combiner


def default_combiner(
    task: str, *, num_members: int, num_validation_rows: int, calibrate: bool = True
) -> Combiner:
    """What a run takes by default: `AutoCombiner`, or the mean where that would have nothing to choose by.

    >>> default_combiner("classification", num_members=4, num_validation_rows=500)
    AutoCombiner()
    >>> default_combiner("regression", num_members=4, num_validation_rows=500)
    MeanCombiner()
    """
    enough = num_members > 1 and num_validation_rows >= LEAST_ROWS
    return AutoCombiner() if task == "classification" and calibrate and enough else MeanCombiner()


def combiner_settings(combiner: Combiner) -> dict[str, Any]:
    """A combiner's fields as plain JSON values; `make_combiner` takes them.

    >>> combiner_settings(make_combiner("mean")), combiner_settings(make_combiner("superposition"))
    ({}, {'coherence': 1.0, 'shares': []})
    """
    values = asdict(combiner)  # type: ignore[call-overload]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _trimmed(member_probs: Tensor, weights: Tensor, fraction: float) -> Tensor:
    """The mean of sorted probabilities without a fraction at either end, normalised over the classes."""
    counting = member_probs[weights > 0]
    cut = min(int(fraction * len(counting)), (len(counting) - 1) // 2)
    middle = counting.sort(dim=0).values[cut : len(counting) - cut].mean(dim=0)
    totals = middle.sum(dim=-1, keepdim=True)
    return torch.where(
        totals > 0, middle / totals.clamp_min(torch.finfo(totals.dtype).tiny), counting.mean(dim=0)
    )
