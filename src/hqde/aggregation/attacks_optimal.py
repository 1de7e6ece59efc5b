"""Attacks that know the deployed rule and choose their strength against it; attacks by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hqde.aggregation.attacks import (
    Attack,
    ConstantRow,
    GaussianNoise,
    NonFinite,
    ScaledUpdate,
    SignFlip,
    ZeroRow,
)
from hqde.aggregation.attacks_crafted import (
    ALittleIsEnough,
    InnerProductManipulation,
    Mimic,
    MinMax,
    MinSum,
)
from hqde.aggregation.rule import Rule
from hqde.errors import ConfigError, did_you_mean

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        SignFlip,
        ScaledUpdate,
        GaussianNoise,
        ConstantRow,
        ZeroRow,
        NonFinite,
        ALittleIsEnough,
        InnerProductManipulation,
        Mimic,
        MinMax,
        MinSum,
    )
}


@dataclass(frozen=True)
class OptimalAttack(Attack):
    """An attack with the strength that moves the deployed rule's value farthest from the honest mean.

    Strengths from ``low`` to ``high`` are tried on a logarithmic grid, with both signs, and the best is
    refined by golden section. Made by ``optimal(attack, rule)``.

    Args:
        attack: one with a ``strength``.
        rule: the whole pipeline that it is up against.
        low, high: the range of strengths.
        num_grid: strengths tried first, of each sign.
        num_steps: of the refinement.
    """

    name: ClassVar[str] = "optimal"
    attack: Attack
    rule: Rule
    low: float = 0.01
    high: float = 100.0
    num_grid: int = 13
    num_steps: int = 12

    def __post_init__(self) -> None:
        if "strength" not in {field.name for field in fields(self.attack)}:  # type: ignore[arg-type]
            raise ConfigError(f"attack '{self.attack.name}' has no strength to search for")
        if not 0 < self.low < self.high or self.num_grid < 2 or self.num_steps < 0:
            raise ConfigError(
                f"optimal needs 0 < low < high and num_grid >= 2, got {self.low}, {self.high}, "
                f"{self.num_grid}"
            )

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The bad rows at the best strength."""
        return self.at(self.best_strength(honest, count, generator), honest, count, generator)

    def at(self, strength: float, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The bad rows at one strength; draws are the same for each."""
        draws = torch.Generator(honest.device)
        draws.set_state(generator.get_state())
        options: dict[str, Any] = {"strength": strength}
        armed: Attack = replace(self.attack, **options)  # type: ignore[type-var]
        return armed(honest, count, generator=draws)

    def best_strength(self, honest: Tensor, count: int, generator: torch.Generator) -> float:
        """The strength that does most damage."""
        shares = torch.full((len(honest) + count,), 1.0 / (len(honest) + count), dtype=torch.float64)
        mean = honest.double().mean(dim=0)

        def damage(strength: float) -> float:
            rows = torch.cat([honest, self.at(strength, honest, count, generator)])
            return float((self.rule(rows, shares).value.double() - mean).norm())

        ratio = (self.high / self.low) ** (1.0 / (self.num_grid - 1))
        grid = [sign * self.low * ratio**k for k in range(self.num_grid) for sign in (1.0, -1.0)]
        best = max(grid, key=damage)
        low, high = best / ratio, best * ratio
        for _ in range(self.num_steps):
            left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
            low, high = (low, right) if damage(left) > damage(right) else (left, high)
        return max((best, 0.5 * (low + high)), key=damage)


def optimal(attack: Attack, rule: Rule, **options: Any) -> OptimalAttack:
    """The attack with its strength searched against a rule with all its pre-aggregators.

    Raises:
        ConfigError: the attack has no strength, or an option is out of range.

    Example:
        >>> from hqde.aggregation import TrimmedMean
        >>> rows = torch.tensor([[1.0], [2.0], [4.0], [5.0]])
        >>> attack = optimal(SignFlip(), TrimmedMean(1))
        >>> shares = torch.full((5,), 1 / 5)
        >>> found = TrimmedMean(1)(torch.cat([rows, attack(rows, 1)]), shares).value
        >>> round(abs(float(found) - 3.0), 3)  # the value that one row in five can move it to
        0.667

    Source: Shejwalkar, Houmansadr 2021, "Manipulating the Byzantine"; the search against the deployed
    pipeline is ByzFL's (González et al. 2025).
    """
    return OptimalAttack(attack, rule, **options)


def make_attack(name: str, **options: Any) -> Attack:
    """An attack by name.

    Raises:
        ConfigError: an unknown name or setting.

    >>> make_attack("alie", strength=1.5)
    ALittleIsEnough(strength=1.5)
    """
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack '{name}'; {did_you_mean(name, ATTACKS)}")
    settings = [field.name for field in fields(ATTACKS[name])]  # type: ignore[arg-type]
    for option in options:
        if option not in settings:
            raise ConfigError(f"attack '{name}' has no setting '{option}'; {did_you_mean(option, settings)}")
    return ATTACKS[name](**options)
