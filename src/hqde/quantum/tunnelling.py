"""Search by tunnelling: a ring of walkers on a rugged function, tied to each other more and more tightly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.errors import ConfigError
from hqde.seeding import generator

MIN_SPREAD = 1e-12


@dataclass(frozen=True)
class Tunnelling:
    """Path-integral annealing of a function on the unit cube, one evaluation at a time.

    In plain mathematics: P walkers x_i stand in a ring. Trial n belongs to walker i = n mod P, which is
    drawn to the middle of its two neighbours and takes a step of chance,

        x' = x_i + (1 − exp(−κ)) (m_i − x_i) + s ξ,     m_i = (x_{i−1} + x_{i+1}) / 2,

    reflected at the borders; the first P trials are drawn evenly from the cube. When its value is known the
    walker goes there with probability min(1, exp(−ΔS)), where the action

        S = f(x_i) / (T σ) + κ/2 (‖x_i − x_{i−1}‖² + ‖x_i − x_{i+1}‖²)

    has the values' median absolute deviation σ for a unit. Over the run the transverse field Γ falls from Γ₀
    to 0 and the coupling κ = −½ log tanh Γ grows from next to nothing without bound; s falls with it. A
    walker behind a barrier is pulled through it by neighbours that have found something better. (Drift and
    step are no symmetric proposal, so this is a search and not a sampler.)

    Args:
        num_walkers: P, at least 2.
        field: Γ₀, above 0.
        temperature: T, above 0.
        first_step, last_step: s at both ends, in units of the cube's side, above 0.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> walkers = Tunnelling(num_walkers=2)
        >>> point = walkers.propose({}, 0, dimensions=3, budget=10, seed=0)
        >>> len(point), all(0 <= x <= 1 for x in point.tolist())
        (3, True)

    Source: Martoňák, Santoro, Tosatti 2002, "Quantum annealing by the path-integral Monte Carlo method".
    """

    num_walkers: int = 4
    field: float = 2.0
    temperature: float = 0.02
    first_step: float = 0.25
    last_step: float = 0.03

    def __post_init__(self) -> None:
        if self.num_walkers < 2:
            raise ConfigError(f"a ring has at least 2 walkers, got {self.num_walkers}")
        for name in ("field", "temperature", "first_step", "last_step"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, got {getattr(self, name)}")

    def coupling(self, progress: float) -> float:
        """κ where so much of the budget is spent: −½ log tanh(Γ₀ (1 − progress)).

        >>> walkers = Tunnelling(field=2.0)
        >>> round(walkers.coupling(0.0), 3), round(walkers.coupling(0.9), 3)
        (0.018, 0.811)
        """
        return -0.5 * math.log(math.tanh(self.field * max(1e-6, 1.0 - progress)))

    def propose(
        self,
        seen: Mapping[int, tuple[Tensor, float]],
        number: int,
        *,
        dimensions: int,
        budget: int,
        seed: int,
    ) -> Tensor:
        """Where trial ``number`` looks.

        The same history and seed give the same place, whatever was asked before: a search that was
        interrupted goes on as if it had not been.

        Args:
            seen: points ``(dimensions,)`` of the unit cube and their values, to be small, by trial number.
            number: of the trial, counted from 0. Trials between may still be under way.
            dimensions: of the cube.
            budget: trials in all; later ones go on as the last of them.
            seed: of every draw.

        Returns:
            ``(dimensions,)`` float64 in [0, 1].
        """
        draws = generator(seed, "tunnelling", number)
        places = self._walk(seen, number, budget=budget, seed=seed)
        own = places.get(number % self.num_walkers)
        if own is None:
            return torch.rand(dimensions, generator=draws, dtype=torch.float64)
        progress = self._progress(number, budget)
        step = self.last_step + (self.first_step - self.last_step) * (1.0 - progress)
        pull = 1.0 - math.exp(-self.coupling(progress))
        middle = torch.stack(self._neighbours(places, number % self.num_walkers)).mean(dim=0)
        noise = torch.randn(dimensions, generator=draws, dtype=torch.float64)
        return _reflected(own[0] + pull * (middle - own[0]) + step * noise)

    def _walk(
        self, seen: Mapping[int, tuple[Tensor, float]], until: int, *, budget: int, seed: int
    ) -> dict[int, tuple[Tensor, float]]:
        """Where each walker stands before trial ``until``: all that came before, once more."""
        places: dict[int, tuple[Tensor, float]] = {}
        before_it = (value for number, (_, value) in sorted(seen.items()) if number < until)
        values = torch.tensor([value for value in before_it if math.isfinite(value)])
        spread = float((values - values.median()).abs().median()) if len(values) else 0.0
        unit = self.temperature * max(spread, MIN_SPREAD)
        for number, (point, value) in sorted(seen.items()):
            walker = number % self.num_walkers
            if number >= until or not math.isfinite(value):
                continue
            if walker not in places:
                places[walker] = (point, value)
                continue
            before = places[walker]
            kappa = self.coupling(self._progress(number, budget))
            near = self._neighbours(places, walker)
            tension = sum(float((point - x).square().sum() - (before[0] - x).square().sum()) for x in near)
            change = (value - before[1]) / unit + 0.5 * kappa * tension
            chance = float(
                torch.rand((), generator=generator(seed, "goes there", number), dtype=torch.float64)
            )
            if change <= 0.0 or chance < math.exp(-change):
                places[walker] = (point, value)
        return places

    def _neighbours(self, places: Mapping[int, tuple[Tensor, float]], walker: int) -> list[Tensor]:
        """The nearest walkers on both sides of the ring that have a place; itself where it is alone."""
        found = []
        for side in (-1, 1):
            ring = [(walker + side * k) % self.num_walkers for k in range(1, self.num_walkers + 1)]
            found.append(next(places[other][0] for other in ring if other in places))
        return found

    def _progress(self, number: int, budget: int) -> float:
        return min(1.0, number / max(1, budget - 1))


def _reflected(point: Tensor) -> Tensor:
    """Into the unit cube, as a mirror would at its borders.

    >>> _reflected(torch.tensor([-0.25, 0.5, 1.25])).tolist()
    [0.25, 0.5, 0.75]
    """
    folded = point.remainder(2.0)
    return torch.where(folded > 1.0, 2.0 - folded, folded)
