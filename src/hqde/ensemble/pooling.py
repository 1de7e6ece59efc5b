"""What a combiner is, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor

from hqde.ensemble.calibration import log_of
from hqde.errors import NonFiniteError, PreconditionError


class Combiner(Protocol):
    """Pools the members' class probabilities.

    For every combiner: rows of the result sum to 1, the order of the members (with their scores) does not
    matter, members that agree are returned as they are (votes: their class), and probabilities of 0 and 1
    give no NaN.
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


@runtime_checkable
class FittableCombiner(Combiner, Protocol):
    """A combiner that learns from held-out rows what each member is worth.

    What it has learned stands in its fields, one number per member in the order of their predictions, so that
    its ``repr`` and the artefact's manifest hold all of it. With empty ``shares`` nothing was learned yet.
    """

    @property
    def shares(self) -> tuple[float, ...]:
        """One number per member, summing to 1."""
        ...

    def fit(self, member_predictions: Tensor, targets: Tensor) -> Combiner:
        """The same (or, for ``auto``, the one chosen), fitted on rows that no member was trained on.

        Args:
            member_predictions: (m, n, c) probabilities, or (m, n, 2) means and variances.
            targets: (n,) class ids, or numbers.
        """
        ...

    def of_members(self, positions: Sequence[int]) -> Self:
        """The same for some of the members, their shares made to sum to 1 again."""
        ...


class Pooling(ABC):
    """What every combiner here inherits: equal weights, and how weights and pool become a combination."""

    name: ClassVar[str]
    pools_normals: ClassVar[bool]

    def weights(self, scores: Tensor) -> Tensor:
        """``1/m`` each, (m,) float32, from the members' scores (m,)."""
        return equal_weights(scores)

    @abstractmethod
    def pool(self, member_probs: Tensor, weights: Tensor) -> Tensor:
        """Probabilities (n, c) from those of the members (m, n, c) and their weights (m,)."""

    def combine(self, member_probs: Tensor, scores: Tensor) -> Tensor:
        """Probabilities (n, c) from (m, n, c), by the weights that the scores (m,) give.

        Raises:
            PreconditionError: shapes that do not fit.
            NonFiniteError: NaN or infinity in either.
        """
        if member_probs.ndim != 3 or scores.shape != member_probs.shape[:1] or len(scores) == 0:
            raise PreconditionError(
                f"combining needs probabilities (members, rows, classes) and one score per member, got "
                f"{tuple(member_probs.shape)} and {tuple(scores.shape)}."
            )
        if not bool(torch.isfinite(member_probs).all()) or not bool(torch.isfinite(scores).all()):
            raise NonFiniteError(
                "member probabilities and scores must be finite: check the members' weights."
            )
        return self.pool(member_probs, self.weights(scores.to(member_probs.device)))


class SharePooling(Pooling):
    """A combiner that learns one share per member, in its field ``shares``; empty before fitting."""

    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.shares and not (min(self.shares) >= 0.0 and abs(sum(self.shares) - 1.0) <= 1e-6):
            raise PreconditionError(
                f"the shares of combiner {self.name!r} are at least 0 and sum to 1, got {list(self.shares)}."
            )

    def weights(self, scores: Tensor) -> Tensor:
        """The shares; before fitting, what the scores say.

        Raises:
            PreconditionError: they were fitted for another number of members.
        """
        if not self.shares:
            return self.unfitted_weights(scores)
        check_num_members(cast(Combiner, self), len(scores))
        return torch.tensor(self.shares, dtype=torch.float64, device=scores.device).to(torch.float32)

    def unfitted_weights(self, scores: Tensor) -> Tensor:
        """Weights before fitting: ``1/m`` each."""
        return equal_weights(scores)

    def of_members(self, positions: Sequence[int]) -> Self:
        """For the members at these positions, their shares made to sum to 1 again."""
        kept: Self = replace(cast(Any, self), shares=shares_of(self.shares, positions))
        return kept


def equal_weights(scores: Tensor) -> Tensor:
    """``1/m`` each, (m,) float32."""
    return torch.full((len(scores),), 1.0 / len(scores), dtype=torch.float32, device=scores.device)


def softmax_weights(scores: Tensor) -> Tensor:
    """``softmax(scores)``, (m,) float32."""
    return torch.softmax(scores.to(torch.float64), dim=0).to(torch.float32)


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """``Σ_m w_m rows_m`` (…) from (m, …)."""
    return torch.tensordot(weights.to(rows.dtype), rows, dims=1)


def weighted_geometric_mean(member_probs: Tensor, weights: Tensor) -> Tensor:
    """``p(c) ∝ exp(Σ_m w_m log p_m(c))``, probabilities kept at or above the smallest normal number."""
    return torch.softmax(weighted_mean(log_of(member_probs), weights), dim=-1)


def check_num_members(combiner: Combiner, num_members: int) -> None:
    """Refuse a combiner that was fitted for another number of members."""
    shares = combiner.shares if isinstance(combiner, FittableCombiner) else ()
    if shares and len(shares) != num_members:
        raise PreconditionError(
            f"combiner {combiner.name!r} was fitted for {len(shares)} members, and there are {num_members}: "
            "fit it anew."
        )


def shares_of(shares: Sequence[float], positions: Sequence[int]) -> tuple[float, ...]:
    """Some members' shares, made to sum to 1; equal ones if all of them are 0, none if there are none.

    >>> shares_of((0.5, 0.25, 0.25), [0, 1]), shares_of((1.0, 0.0, 0.0), [1, 2]), shares_of((), [0])
    ((0.6666666666666666, 0.3333333333333333), (0.5, 0.5), ())
    """
    if not shares:
        return ()
    kept = [shares[position] for position in positions]
    total = sum(kept)
    return tuple(share / total for share in kept) if total > 0 else (1.0 / len(kept),) * len(kept)
