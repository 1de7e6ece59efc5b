"""How member probabilities become one prediction.

Every combiner weighs members (``weights``) and pools their probabilities (``pool``); ``combine`` does both.
Adding one: a frozen dataclass with these methods and a ``name``, and a line in ``COMBINERS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hqde.errors import ConfigError, NonFiniteError, PreconditionError, did_you_mean


class Combiner(Protocol):
    """Pools the members' class probabilities.

    For every combiner: rows of the result sum to 1, the order of the members (with their scores) does not
    matter, members that agree are returned as they are, and probabilities of 0 and 1 give no NaN.
    """

    name: ClassVar[str]
    pools_normals: ClassVar[bool]
    """Whether the weights also mix normal distributions (regression)."""

    def weights(self, scores: Tensor) -> Tensor:
        """Shares (m,) float32 that sum to 1, from the members' scores (m,)."""
        ...

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """Probabilities (n, c) from those of the members (m, n, c) and their weights (m,)."""
        ...

    def combine(self, member_probs: Tensor, scores: Tensor) -> Tensor:
        """``pool(member_probs, weights(scores))``, after the shapes have been checked."""
        ...


@dataclass(frozen=True)
class MeanCombiner:
    """The mean of the members' probabilities: ``p(c) = Σ_m p_m(c) / m``.

    Probabilities are averaged, not logits: the mean's NLL is never above the members' mean NLL (Jensen).
    Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty estimation using deep
    ensembles" (2017).

    >>> MeanCombiner().combine(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]), torch.ones(2))
    tensor([[0.7500, 0.2500]])
    """

    name: ClassVar[str] = "mean"
    pools_normals: ClassVar[bool] = True

    def weights(self, scores: Tensor) -> Tensor:
        """``1/m`` each."""
        return _equal_weights(scores)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean."""
        return _weighted_mean(member_probs, weights)

    def combine(self, member_probs: Tensor, scores: Tensor) -> Tensor:
        """Probabilities (n, c) from (m, n, c); the scores (m,) play no part."""
        return self.pool(*_checked(self, member_probs, scores))


@dataclass(frozen=True)
class EfficiencyCombiner:
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
        return torch.softmax(scores.to(torch.float64), dim=0).to(torch.float32)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean."""
        return _weighted_mean(member_probs, weights)

    def combine(self, member_probs: Tensor, scores: Tensor) -> Tensor:
        """Probabilities (n, c) from (m, n, c), by the scores (m,)."""
        return self.pool(*_checked(self, member_probs, scores))


@dataclass(frozen=True)
class LogPoolCombiner:
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

    def weights(self, scores: Tensor) -> Tensor:
        """``1/m`` each."""
        return _equal_weights(scores)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The weighted geometric mean, normalised."""
        logs = member_probs.clamp_min(torch.finfo(member_probs.dtype).tiny).log()
        return torch.softmax(_weighted_mean(logs, weights), dim=-1)

    def combine(self, member_probs: Tensor, scores: Tensor) -> Tensor:
        """Probabilities (n, c) from (m, n, c); the scores (m,) play no part."""
        return self.pool(*_checked(self, member_probs, scores))


@dataclass(frozen=True)
class MedianCombiner:
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

    def weights(self, scores: Tensor) -> Tensor:
        """``1/m`` each."""
        return _equal_weights(scores)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The median of members with a weight, normalised."""
        return _trimmed(member_probs, weights, 0.5)

    def combine(self, member_probs: Tensor, scores: Tensor) -> Tensor:
        """Probabilities (n, c) from (m, n, c); the scores (m,) play no part."""
        return self.pool(*_checked(self, member_probs, scores))


@dataclass(frozen=True)
class TrimmedMeanCombiner:
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

    def weights(self, scores: Tensor) -> Tensor:
        """``1/m`` each."""
        return _equal_weights(scores)

    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """The mean of the middle half of members with a weight, normalised."""
        return _trimmed(member_probs, weights, 0.25)

    def combine(self, member_probs: Tensor, scores: Tensor) -> Tensor:
        """Probabilities (n, c) from (m, n, c); the scores (m,) play no part."""
        return self.pool(*_checked(self, member_probs, scores))


AnyCombiner = MeanCombiner | EfficiencyCombiner | LogPoolCombiner | MedianCombiner | TrimmedMeanCombiner
COMBINERS: dict[str, type[AnyCombiner]] = {
    combiner.name: combiner
    for combiner in (MeanCombiner, EfficiencyCombiner, LogPoolCombiner, MedianCombiner, TrimmedMeanCombiner)
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


def make_combiner(name: str) -> Combiner:
    """The combiner of that name.

    Raises:
        ConfigError: no combiner has the name.

    >>> make_combiner("log_pool")
    LogPoolCombiner()
    """
    if name not in COMBINERS:
        raise ConfigError(f"unknown combiner {name!r}: {did_you_mean(str(name), COMBINERS)}")
    return COMBINERS[name]()


def _equal_weights(scores: Tensor) -> Tensor:
    return torch.full((len(scores),), 1.0 / len(scores), dtype=torch.float32, device=scores.device)


def _weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    return torch.tensordot(weights.to(rows.dtype), rows, dims=1)


def _trimmed(member_probs: Tensor, weights: Tensor, fraction: float) -> Tensor:
    """The mean of sorted probabilities without a fraction at either end, normalised over the classes."""
    counting = member_probs[weights > 0]
    cut = min(int(fraction * len(counting)), (len(counting) - 1) // 2)
    middle = counting.sort(dim=0).values[cut : len(counting) - cut].mean(dim=0)
    totals = middle.sum(dim=-1, keepdim=True)
    return torch.where(
        totals > 0, middle / totals.clamp_min(torch.finfo(totals.dtype).tiny), counting.mean(dim=0)
    )


def _checked(combiner: Combiner, member_probs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    if member_probs.ndim != 3 or scores.shape != member_probs.shape[:1] or len(scores) == 0:
        raise PreconditionError(
            f"combining needs probabilities (members, rows, classes) and one score per member, got "
            f"{tuple(member_probs.shape)} and {tuple(scores.shape)}."
        )
    if not bool(torch.isfinite(member_probs).all()) or not bool(torch.isfinite(scores).all()):
        raise NonFiniteError("member probabilities and scores must be finite: check the members' weights.")
    return member_probs, combiner.weights(scores.to(member_probs.device))
