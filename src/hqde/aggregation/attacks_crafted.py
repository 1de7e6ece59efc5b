"""Attacks that hide among the honest rows: ALIE, IPM, mimic, min-max, min-sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.aggregation.attacks import Attack, same_row
from hqde.aggregation.geometry import centred_gram, squared_distances
from hqde.aggregation.gram import gram_matrix, gram_parts
from hqde.errors import ConfigError

Direction = Literal["std", "unit", "sign"]


@dataclass(frozen=True)
class ALittleIsEnough(Attack):
    """ALIE: the mean of the honest rows minus z standard deviations, in every coordinate.

    Args:
        strength: z; ``None`` takes the largest with which the bad rows still hide behind enough honest ones:
            Φ⁻¹((n - f - s) / (n - f)), s = ⌊n / 2⌋ + 1 - f.

    Example:
        >>> ALittleIsEnough(strength=1.0)(torch.tensor([[1.0], [3.0]]), 1)
        tensor([[1.]])

    Source: Baruch, Baruch, Goldberg 2019, "A little is enough: circumventing defenses for distributed
    learning".
    """

    name: ClassVar[str] = "alie"
    strength: float | None = None

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """mean - z · std."""
        z = self.strength if self.strength is not None else alie_deviation(len(honest) + count, count)
        return same_row(honest.mean(dim=0) - z * honest.std(dim=0, unbiased=False), count)


def alie_deviation(num_workers: int, num_byzantine: int) -> float:
    """z of ALIE for n workers, f of them bad.

    >>> round(alie_deviation(50, 12), 2)
    0.34
    """
    good = num_workers - num_byzantine
    supporters = num_workers // 2 + 1 - num_byzantine
    fraction = min(max((good - supporters) / good, 0.5 / good), 1.0 - 0.5 / good)
    return math.sqrt(2.0) * float(
        torch.special.erfinv(torch.tensor(2.0 * fraction - 1.0, dtype=torch.float64))
    )


@dataclass(frozen=True)
class InnerProductManipulation(Attack):
    """IPM, Fall of Empires: a mean that points backwards, short enough to be averaged in: -ε · mean.

    >>> InnerProductManipulation(strength=0.5)(torch.tensor([[1.0], [3.0]]), 1)
    tensor([[-1.]])

    Source: Xie, Koyejo, Gupta 2020, "Fall of empires: breaking Byzantine-tolerant SGD by inner product
    manipulation".
    """

    name: ClassVar[str] = "ipm"
    strength: float = 0.1

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """-ε · mean."""
        return same_row(-self.strength * honest.mean(dim=0), count)


@dataclass(frozen=True)
class Mimic(Attack):
    """All bad workers copy one honest row, so that its data count for more than others'.

    Args:
        target: position of the row; ``None`` takes the one farthest out along the direction in which the
            honest rows differ most.

    Example:
        >>> Mimic()(torch.tensor([[1.0], [2.0], [9.0]]), 1)
        tensor([[9.]])

    Source: Karimireddy, He, Jaggi 2022, "Byzantine-robust learning on heterogeneous datasets via bucketing".
    """

    name: ClassVar[str] = "mimic"
    target: int | None = None

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """One honest row."""
        target = self.target
        if target is None:
            gram = gram_matrix(gram_parts(honest))[:-1, :-1]
            inner = centred_gram(torch.full((len(honest),), 1.0 / len(honest), dtype=torch.float64), gram)
            target = int(torch.linalg.eigh(inner)[1][:, -1].abs().argmax())
        return same_row(honest[target], count)


@dataclass(frozen=True)
class MinMax(Attack):
    """The mean plus γ · direction, with the largest γ for which it still hides among the honest rows.

    It hides if it is no farther from any of them than the two that are farthest apart.

    Args:
        direction: away from the mean: minus the standard deviation of every coordinate (``"std"``), minus the
            mean's direction (``"unit"``) or minus its signs (``"sign"``).

    Example:
        >>> MinMax()(torch.tensor([[0.0], [2.0]]), 1)  # the mean is 1, and 0 is 2 away from 2
        tensor([[0.]])

    Source: Shejwalkar, Houmansadr 2021, "Manipulating the Byzantine", section IV.
    """

    name: ClassVar[str] = "min_max"
    direction: Direction = "std"

    def __post_init__(self) -> None:
        _check_direction(self.name, self.direction)

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """mean + γ · direction."""
        limit = _pairwise(honest).max()
        return same_row(_farthest(honest, self.direction, lambda squares: squares.max() <= limit), count)


@dataclass(frozen=True)
class MinSum(Attack):
    """As min-max, with the sum of squared distances to honest rows no larger than an honest row's.

    >>> MinSum()(torch.tensor([[0.0], [2.0]]), 1)
    tensor([[0.]])

    Source: Shejwalkar, Houmansadr 2021, "Manipulating the Byzantine", section IV.
    """

    name: ClassVar[str] = "min_sum"
    direction: Direction = "std"

    def __post_init__(self) -> None:
        _check_direction(self.name, self.direction)

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """mean + γ · direction."""
        limit = _pairwise(honest).sum(dim=1).max()
        return same_row(_farthest(honest, self.direction, lambda squares: squares.sum() <= limit), count)


def _check_direction(name: str, direction: str) -> None:
    if direction not in ("std", "unit", "sign"):
        raise ConfigError(f"direction of '{name}' must be 'std', 'unit' or 'sign', got '{direction}'")


def _pairwise(honest: Tensor) -> Tensor:
    return squared_distances(gram_matrix(gram_parts(honest)))[:-1, :-1]


def _farthest(honest: Tensor, direction: Direction, hides: Callable[[Tensor], Tensor]) -> Tensor:
    """mean + γ · direction with the largest γ for which the squared distances to honest rows still hide it.

    ‖xᵢ - mean - γ u‖² = aᵢ - 2 γ bᵢ + γ² c, so that the search does not touch the rows.
    """
    rows = honest.double()
    mean = rows.mean(dim=0)
    if direction == "std":
        towards = -rows.std(dim=0, unbiased=False)
    elif direction == "unit":
        towards = -mean / mean.norm().clamp_min(torch.finfo(torch.float64).tiny)
    else:
        towards = -mean.sign()
    away = rows - mean
    a, b, c = away.square().sum(dim=1), away @ towards, towards.square().sum()
    if float(c) == 0.0:
        return mean
    low, high = 0.0, 1.0
    while bool(hides(a - 2.0 * high * b + high**2 * c)) and high < 1e12:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if bool(hides(a - 2.0 * middle * b + middle**2 * c)) else (low, middle)
    return mean + low * towards
