"""Aggregation rules: rows and shares to one vector, in two steps that may run on different machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from hqde.aggregation.gram import gram_matrix, gram_parts, is_measurable
from hqde.aggregation.summation import weighted_sum
from hqde.errors import ConfigError, NonFiniteError, PreconditionError
from hqde.finite import has_finite_sum, is_finite

Basis = Literal["shares", "gram", "columns"]


@dataclass(frozen=True)
class Decision:
    """What a rule decides once, about the rows as wholes.

    Attributes:
        weights: ``(n,)`` float64 weight given to each row; ``None`` where a rule has none. They sum to 1,
            or to less after clipping, where a delta of zero takes the rest.
        mixing: ``(k, n)`` float64: the rows that a rule by columns is to see are these combinations of the
            rows handed in; ``None`` if they are the rows themselves.
        rejected: positions of rows the rule left out, with the reason.
        iterations: steps of an iterative rule; 0 for closed forms.
        converged: an iterative rule reached its tolerance.
        agreement: ``(n,)`` in [0, 1], how far each row agrees with the majority, where somebody looked.
        outliers: scores ``(n,)`` by name (``OutlierScores``), where somebody looked.
    """

    weights: Tensor | None = None
    mixing: Tensor | None = None
    rejected: dict[int, str] = field(default_factory=dict)
    iterations: int = 0
    converged: bool = True
    agreement: Tensor | None = None
    outliers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregate:
    """What a rule returns.

    Attributes:
        value: ``(d,)`` the aggregated delta.
        decision: how it came about.
    """

    value: Tensor
    decision: Decision


class Rule(ABC):
    """``rows (n, d)`` deltas and ``shares (n,)`` that sum to 1, to one ``(d,)`` vector. Never mutates.

    A rule works in two steps, so that an aggregation can be spread over machines (see ``topology.plans``):
    ``decide`` looks at the rows as wholes, once; ``combine`` turns any slice of columns into its part of the
    value. ``basis`` says what the decision needs:

    - ``"shares"``: nothing but the shares, and ``combine`` is a weighted sum, which a tree may add up;
    - ``"gram"``: the centred Gram matrix, summed over all columns;
    - ``"columns"``: nothing; every coordinate is combined by itself.

    ``counts`` says in what a rule measures the part of the rows that it can bear to be wrong: in ``"weight"``
    (shares), in ``"heads"`` (rows; the shares of rows play no part), or ``"nothing"`` if it bears none.
    ``moves_along`` says that translating all rows translates the value, which clipping around zero does not.
    """

    basis: ClassVar[Basis]
    name: ClassVar[str]
    counts: ClassVar[Literal["weight", "heads", "nothing"]] = "heads"
    bound: ClassVar[str] = "n >= 1"
    moves_along: ClassVar[bool] = True

    @abstractmethod
    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """Decide from ``gram_matrix``, ``(n + 1, n + 1)`` with the origin last, and the shares.

        The matrix may be ``None`` unless it is the basis.
        """

    @abstractmethod
    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """Columns ``(n, c)`` to ``(c,)``, the same bits for any slicing of the columns."""

    def least_rows(self) -> int:
        """How many rows the rule needs for what it promises."""
        return 1

    def kappa(self, num_rows: int) -> float | None:  # noqa: ARG002 - the signature
        """κ of its published robustness, or ``None`` where it is not known here.

        For any set S of n - f rows, with equal shares: ‖value - mean(S)‖² is at most κ times the mean over S
        of ‖row - mean(S)‖².
        """
        return None

    def after_rejecting(self, count: int) -> Rule:  # noqa: ARG002 - the signature
        """The rule for the rows that are left once ``count`` bad ones were refused: they count against f."""
        return self

    def for_round(self, round_index: int) -> Rule:  # noqa: ARG002 - the signature
        """The rule for one round; differs from this one where chance plays a part."""
        return self

    def __call__(self, rows: Sequence[Tensor] | Tensor, shares: Tensor) -> Aggregate:
        """Both steps, here and now, on rows in the order given; the engine orders them by worker id.

        Rows with NaN or infinity are left out, and count against f: the value has the bits of the one without
        them. Admission refuses such rows before a rule sees them; here it is the last guard.

        Raises:
            PreconditionError: rows and shares do not fit each other, or the rule's own condition is not met.
            NonFiniteError: there is no finite row with a share.
        """
        check_rows(rows, shares)
        try:
            found = self._aggregate(rows, shares)
        except NonFiniteError:
            return self._without_nonfinite(rows, shares)
        if not has_finite_sum(found.value) and not all(is_finite(row) for row in rows):
            return self._without_nonfinite(rows, shares)
        return found

    def check_bound(self, num_rows: int) -> None:
        """Refuse too few rows.

        Raises:
            PreconditionError: with the numbers and what would do.
        """
        least = self.least_rows()
        if num_rows >= least:
            return
        faults = getattr(self, "num_byzantine", 0)
        fewer = next((f for f in range(faults - 1, -1, -1) if self._with_faults(f) <= num_rows), None)
        cure = (
            f"Use num_byzantine={fewer} or {least} workers." if fewer is not None else f"Use {least} workers."
        )
        raise PreconditionError(f"{self.name} needs {self.bound}: n={num_rows}, f={faults}. {cure}")

    def _with_faults(self, faults: int) -> int:
        return replace(self, num_byzantine=faults).least_rows()  # type: ignore[type-var]

    def _aggregate(self, rows: Sequence[Tensor] | Tensor, shares: Tensor) -> Aggregate:
        gram = gram_matrix(gram_parts(rows)) if self.basis == "gram" else None
        decision = self.decide(gram, shares)
        return Aggregate(self.combine(rows, decision), decision)

    def _without_nonfinite(self, rows: Sequence[Tensor] | Tensor, shares: Tensor) -> Aggregate:
        sound = [i for i, row in enumerate(rows) if is_measurable(row)]
        total = float(shares[sound].sum()) if sound else 0.0
        if not total > 0.0:
            raise NonFiniteError("no finite row has a share: check the workers' learning rates and data.")
        left = self.after_rejecting(len(rows) - len(sound))
        found = left._aggregate([rows[i] for i in sound], shares[sound] / total)
        bad = {i: "it holds NaN or infinity" for i in range(len(rows)) if i not in set(sound)}
        return Aggregate(found.value, spread_decision(found.decision, sound, bad, len(rows)))


class FaultBound(Rule):
    """A rule that is told how many rows may be wrong, f = ``num_byzantine``, and needs a majority: 2f < n."""

    num_byzantine: int
    bound: ClassVar[str] = "n >= 2f + 1"

    def least_rows(self) -> int:
        """2f + 1."""
        return 2 * self.num_byzantine + 1

    def after_rejecting(self, count: int) -> Self:
        """With f lowered by what was refused, not below 0."""
        options: dict[str, Any] = {"num_byzantine": max(0, self.num_byzantine - count)}
        return replace(self, **options)  # type: ignore[type-var]

    def __post_init__(self) -> None:
        check_count(self.name, self.num_byzantine)


def check_count(name: str, num_byzantine: int) -> None:
    """Refuse an f that is no count.

    Raises:
        ConfigError: it is not a whole number from 0 on.
    """
    if isinstance(num_byzantine, bool) or not isinstance(num_byzantine, int) or num_byzantine < 0:
        raise ConfigError(
            f"num_byzantine of '{name}' must be a whole number from 0 on, got {num_byzantine!r}; "
            "for a fraction of the workers take num_byzantine_of(num_workers, fraction)"
        )


def num_byzantine_of(num_workers: int, fraction: float = 1 / 3) -> int:
    """The f that a policy such as "a third" means for n workers: ⌊fraction · n⌋, and below n/2.

    >>> num_byzantine_of(9), num_byzantine_of(16), num_byzantine_of(4, 0.5)
    (3, 5, 1)
    """
    if not 0 <= fraction <= 1 or num_workers < 1:
        raise ConfigError(
            f"a share of bad workers lies in [0, 1] and needs a worker, got {fraction} of {num_workers}"
        )
    return min(int(fraction * num_workers + 1e-9), (num_workers - 1) // 2)


def spread_decision(
    decision: Decision, kept: Sequence[int], left_out: Mapping[int, str], num_rows: int
) -> Decision:
    """A decision about the rows at positions ``kept``, as one about all rows.

    Args:
        decision: about so many rows as there are in ``kept``.
        kept: positions, in order.
        left_out: the other positions, with the reason.
        num_rows: of all.
    """
    rejected = dict(left_out) | {kept[i]: reason for i, reason in decision.rejected.items()}
    weights, mixing, places = decision.weights, decision.mixing, list(kept)
    if weights is not None:
        wide = weights.new_zeros(num_rows)
        wide[places] = weights
        weights = wide
    if mixing is not None:
        columns = mixing.new_zeros(len(mixing), num_rows)
        columns[:, places] = mixing
        mixing = columns
    return replace(decision, weights=weights, mixing=mixing, rejected=dict(sorted(rejected.items())))


@dataclass(frozen=True)
class Mean(Rule):
    """The weighted mean: value = Σᵢ shareᵢ · rowᵢ. Tolerates no bad worker.

    Raises:
        PreconditionError: no rows, shares of another length, or shares that do not sum to 1.

    Example:
        >>> import torch
        >>> Mean()(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0.5, 0.5])).value
        tensor([2., 4.])

    Source: McMahan et al. 2017, Algorithm 1.
    """

    basis: ClassVar[Basis] = "shares"
    name: ClassVar[str] = "mean"
    counts: ClassVar[Literal["weight", "heads", "nothing"]] = "nothing"

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:  # noqa: ARG002 - the rule's signature
        """Every row counts with its share."""
        return Decision(weights=shares)

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """The weighted sum."""
        assert decision.weights is not None
        return weighted_sum(rows, decision.weights.tolist())


def check_rows(rows: Sequence[Tensor] | Tensor, shares: Tensor) -> None:
    """Refuse what no rule can aggregate.

    Raises:
        PreconditionError: the sentence says what does not fit.
    """
    some = rows[:1] if isinstance(rows, Tensor) else rows  # all rows of a tensor are alike
    shapes = {tuple(row.shape) for row in some} if len(rows) else set()
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        found = f"{tuple(rows.shape)}" if isinstance(rows, Tensor) else f"rows of shapes {sorted(shapes)}"
        raise PreconditionError(f"a rule needs rows of shape (n, d) with n >= 1, got {found}")
    dtypes = {row.dtype for row in some}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise PreconditionError(f"a rule needs rows of one floating dtype, got {', '.join(map(str, dtypes))}")
    check_shares(len(rows), shares)


def check_shares(num_rows: int, shares: Tensor) -> None:
    """Refuse shares that are not ``num_rows`` non-negative numbers with the sum 1.

    Raises:
        PreconditionError: the sentence says what does not fit.
    """
    if shares.shape != (num_rows,):
        raise PreconditionError(f"{num_rows} rows need as many shares, got {tuple(shares.shape)}")
    total = float(shares.sum())
    if not abs(total - 1.0) <= 1e-6 or not bool((shares >= 0).all()):  # written so that NaN is refused
        raise PreconditionError(
            f"shares must be non-negative and sum to 1, got a least share of {float(shares.min()):.6g} "
            f"and a sum of {total:.6g}"
        )


def shares_of(samples: Sequence[int]) -> Tensor:
    """Sample counts as ``(n,)`` float64 shares that sum to 1.

    >>> shares_of([1, 3])
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    counts = torch.tensor(samples, dtype=torch.float64)
    return counts / counts.sum()
