"""Pre-aggregators: what is done to the rows before a rule, as matrices that compose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, overload

import torch
from torch import Tensor

from hqde.aggregation.geometry import mixed_gram, squared_distances
from hqde.aggregation.rule import Basis, Decision, Rule, check_count
from hqde.aggregation.weighing import needed
from hqde.errors import ConfigError, PreconditionError
from hqde.seeding import derive_seed


@dataclass(frozen=True)
class Mixed:
    """k mixtures of n rows.

    Attributes:
        matrix: ``(k, n + 1)`` float64: the weights of the rows and, last, of the origin; each row sums to 1.
        shares: ``(k,)`` of the mixtures, summing to 1.
    """

    matrix: Tensor
    shares: Tensor


class Mixing(ABC):
    """Rows to mixtures of rows. ``NearestNeighbourMixing(2) >> GeometricMedian()`` is a rule again.

    ``basis`` is ``"gram"`` if the mixing depends on the rows, ``"shares"`` if not.
    """

    basis: ClassVar[Basis] = "gram"
    name: ClassVar[str]
    moves_along: ClassVar[bool] = True

    @abstractmethod
    def mix(self, gram: Tensor | None, shares: Tensor) -> Mixed:
        """The mixtures, from ``gram_matrix`` (``None`` unless it is the basis) and shares ``(n,)``.

        Raises:
            PreconditionError: there are too few rows.
        """

    def least_rows(self, num_mixtures: int) -> int:
        """How many rows it takes for so many mixtures, and for what the mixing promises."""
        return num_mixtures

    def after_rejecting(self, count: int) -> Mixing:  # noqa: ARG002 - the signature
        """The mixing for the rows left once ``count`` bad ones were refused."""
        return self

    def for_round(self, round_index: int) -> Mixing:  # noqa: ARG002 - the signature
        """The mixing for one round."""
        return self

    @overload
    def __rshift__(self, following: Rule) -> Composed: ...
    @overload
    def __rshift__(self, following: Mixing) -> MixingChain: ...
    def __rshift__(self, following: Rule | Mixing) -> Composed | MixingChain:
        """This mixing first, then a rule or another mixing."""
        return Composed(self, following) if isinstance(following, Rule) else MixingChain(self, following)


@dataclass(frozen=True)
class MixingChain(Mixing):
    """Two mixings, one after the other.

    >>> NearestNeighbourMixing(1) >> Bucketing(2)
    MixingChain(first=NearestNeighbourMixing(num_byzantine=1), second=Bucketing(bucket_size=2, seed=0))
    """

    name: ClassVar[str] = "chain"
    first: Mixing
    second: Mixing

    def mix(self, gram: Tensor | None, shares: Tensor) -> Mixed:
        """The product of both matrices."""
        first = self.first.mix(gram, shares)
        inner = mixed_gram(first.matrix, gram) if gram is not None else None
        second = self.second.mix(inner, first.shares)
        points = torch.cat([first.matrix, _origin(first.matrix)])
        return Mixed(second.matrix @ points, second.shares)

    @property
    def basis(self) -> Basis:  # type: ignore[override]
        """The Gram matrix, if one of them needs it."""
        return "gram" if "gram" in (self.first.basis, self.second.basis) else "shares"

    @property
    def moves_along(self) -> bool:  # type: ignore[override]
        """If both do."""
        return self.first.moves_along and self.second.moves_along

    def least_rows(self, num_mixtures: int) -> int:
        """What the first needs to give the second what that needs."""
        return self.first.least_rows(self.second.least_rows(num_mixtures))

    def after_rejecting(self, count: int) -> Mixing:
        """Both without the refused."""
        return MixingChain(self.first.after_rejecting(count), self.second.after_rejecting(count))

    def for_round(self, round_index: int) -> Mixing:
        """Both for that round."""
        return MixingChain(self.first.for_round(round_index), self.second.for_round(round_index))


@dataclass(frozen=True)
class Composed(Rule):
    """A rule on mixtures of the rows; made by ``mixing >> rule``.

    It is decided on n × n matrices: the Gram matrix of mixtures M is M G Mᵀ, and weights w of the mixtures
    are weights Mᵀ w of the rows. Only rules by columns mix the rows themselves, chunk by chunk.

    Example:
        >>> from hqde.aggregation import GeometricMedian, NearestNeighbourMixing
        >>> rows = torch.tensor([[0.0], [1.0], [2.0], [900.0]])
        >>> (NearestNeighbourMixing(1) >> GeometricMedian())(rows, torch.full((4,), 1 / 4)).value
        tensor([1.])
    """

    mixing: Mixing
    rule: Rule

    @property
    def name(self) -> str:  # type: ignore[override]
        """Both names."""
        return f"{self.mixing.name} >> {self.rule.name}"

    @property
    def basis(self) -> Basis:  # type: ignore[override]
        """The Gram matrix, if mixing or rule need it; otherwise the rule's."""
        return "gram" if self.mixing.basis == "gram" else self.rule.basis

    @property
    def moves_along(self) -> bool:  # type: ignore[override]
        """If both do."""
        return self.mixing.moves_along and self.rule.moves_along

    @property
    def counts(self) -> str:  # type: ignore[override]
        """As the rule, on mixtures."""
        return self.rule.counts

    def least_rows(self) -> int:
        """What the mixing needs to give the rule what that needs."""
        return self.mixing.least_rows(self.rule.least_rows())

    def kappa(self, num_rows: int) -> float | None:
        """8 f / (n - f) · (κ + 1) after nearest-neighbour mixing; otherwise none is published."""
        inner = self.rule.kappa(num_rows)
        if inner is None or not isinstance(self.mixing, NearestNeighbourMixing):
            return None
        faults = self.mixing.num_byzantine
        return 8 * faults / (num_rows - faults) * (inner + 1)

    def check_bound(self, num_rows: int) -> None:
        """Refuse too few rows for mixing or rule."""
        if num_rows < self.least_rows():
            faults = max(getattr(part, "num_byzantine", 0) for part in (self.mixing, self.rule))
            raise PreconditionError(
                f"{self.name} needs n >= {self.least_rows()}: n={num_rows}, f={faults}. "
                f"Use a smaller num_byzantine or {self.least_rows()} workers."
            )

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """The rule's decision about the mixtures, as one about the rows.

        Raises:
            PreconditionError: there are too few rows for mixing or rule.
        """
        self.check_bound(len(shares))
        mixed = self.mixing.mix(gram, shares)
        inner = mixed_gram(mixed.matrix, gram) if gram is not None else None
        found = self.rule.decide(inner, mixed.shares)
        matrix = mixed.matrix[:, :-1]
        if found.weights is not None:
            weights = found.weights.double() @ matrix
            left = (weights == 0).nonzero().flatten().tolist()
            reason = f"{self.rule.name} gives no weight to any mixture that it is part of"
            return replace(found, weights=weights, rejected=dict.fromkeys(left, reason))
        mixing = matrix if found.mixing is None else found.mixing @ matrix
        left = (mixing == 0).all(dim=0).nonzero().flatten().tolist()
        reason = f"it is part of no mixture that {self.rule.name} sees"
        return replace(found, mixing=mixing, rejected=dict.fromkeys(left, reason))

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """As the rule combines."""
        return self.rule.combine(rows, decision)

    def after_rejecting(self, count: int) -> Rule:
        """Mixing and rule without the refused."""
        return Composed(self.mixing.after_rejecting(count), self.rule.after_rejecting(count))

    def for_round(self, round_index: int) -> Rule:
        """Mixing and rule for that round."""
        return Composed(self.mixing.for_round(round_index), self.rule.for_round(round_index))


class FaultMixing(Mixing):
    """A mixing that is told how many rows may be wrong, f = ``num_byzantine``, and needs 2f < n."""

    num_byzantine: int

    def __post_init__(self) -> None:
        check_count(self.name, self.num_byzantine)

    def least_rows(self, num_mixtures: int) -> int:
        """2f + 1, and a row for each mixture."""
        return max(2 * self.num_byzantine + 1, num_mixtures)

    def after_rejecting(self, count: int) -> Self:
        """With f lowered by what was refused, not below 0."""
        options: dict[str, Any] = {"num_byzantine": max(0, self.num_byzantine - count)}
        return replace(self, **options)  # type: ignore[type-var]


@dataclass(frozen=True)
class NearestNeighbourMixing(FaultMixing):
    """NNM: every row becomes the mean of the n - f rows nearest to it, itself among them.

    Every mixture keeps the share of the row that it stands for.

    Example:
        >>> from hqde.aggregation import gram_matrix, gram_parts
        >>> gram = gram_matrix(gram_parts(torch.tensor([[0.0], [1.0], [2.0], [900.0]])))
        >>> NearestNeighbourMixing(1).mix(gram, torch.full((4,), 1 / 4)).matrix[3] * 3
        tensor([0., 1., 1., 1., 0.], dtype=torch.float64)

    Source: Allouah et al. 2023, "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity".
    """

    name: ClassVar[str] = "nnm"
    num_byzantine: int

    def mix(self, gram: Tensor | None, shares: Tensor) -> Mixed:
        """``(n, n + 1)``, each row 1 / (n - f) at n - f places."""
        n, f = len(shares), self.num_byzantine
        check_majority_of_rows(self.name, n, f)
        squares = squared_distances(needed(gram, self.name)[:-1, :-1]).fill_diagonal_(-1.0)
        nearest = squares.argsort(dim=1, stable=True)[:, : n - f]
        matrix = torch.zeros(n, n + 1, dtype=torch.float64)
        matrix.scatter_(1, nearest, 1.0 / (n - f))
        return Mixed(matrix, shares.double())


@dataclass(frozen=True)
class Bucketing(Mixing):
    """Rows are shuffled and averaged in buckets of s; the rule sees ⌈n / s⌉ buckets, of which f may be bad.

    Args:
        bucket_size: s.
        seed: of the shuffle; ``for_round`` derives one for each round.

    Example:
        >>> Bucketing(2).mix(None, torch.full((3,), 1 / 3)).matrix
        tensor([[0.5000, 0.0000, 0.5000, 0.0000],
                [0.0000, 1.0000, 0.0000, 0.0000]], dtype=torch.float64)

    Source: Karimireddy, He, Jaggi 2022, "Byzantine-robust learning on heterogeneous datasets via bucketing".
    """

    basis: ClassVar[Basis] = "shares"
    name: ClassVar[str] = "bucketing"
    bucket_size: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bucket_size < 1:
            raise ConfigError(f"bucket_size must be at least 1, got {self.bucket_size}")

    def mix(self, gram: Tensor | None, shares: Tensor) -> Mixed:  # noqa: ARG002 - the mixing's signature
        """``(⌈n / s⌉, n + 1)``, within a bucket by shares."""
        n = len(shares)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        buckets = order.split(self.bucket_size)
        matrix = torch.zeros(len(buckets), n + 1, dtype=torch.float64)
        totals = torch.stack([shares[bucket].double().sum() for bucket in buckets])
        for row, bucket, total in zip(matrix, buckets, totals, strict=True):
            row[bucket] = shares[bucket].double() / total if total > 0 else 1.0 / len(bucket)
        return Mixed(matrix, totals)

    def least_rows(self, num_mixtures: int) -> int:
        """One more than fill all buckets but one."""
        return self.bucket_size * (num_mixtures - 1) + 1

    def for_round(self, round_index: int) -> Self:
        """With a seed of the round's own."""
        return replace(self, seed=derive_seed(self.seed, "bucketing", round_index))


def check_majority_of_rows(name: str, num_rows: int, num_byzantine: int) -> None:
    """Refuse an f of half of the rows or more.

    Raises:
        PreconditionError: with the numbers and what would do.
    """
    if 2 * num_byzantine >= num_rows:
        raise PreconditionError(
            f"{name} needs n >= 2f + 1: n={num_rows}, f={num_byzantine}. "
            f"Use num_byzantine={(num_rows - 1) // 2} or {2 * num_byzantine + 1} workers."
        )


def _origin(matrix: Tensor) -> Tensor:
    """The origin as weights ``(1, n + 1)``."""
    row = torch.zeros_like(matrix[:1])
    row[0, -1] = 1.0
    return row
