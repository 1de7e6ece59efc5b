"""Differential privacy of an average of deltas: clip each, add noise once to their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hqde.aggregation.rule import Basis, Decision, Rule
from hqde.aggregation.summation import weighted_sum
from hqde.errors import ConfigError


@dataclass(frozen=True)
class GaussianMechanism:
    """The Gaussian mechanism on a sum of clipped deltas, divided by a number that is known beforehand.

    In plain mathematics, for deltas Δ_i of those who take part and ``m`` who are expected to:

        (Σ_i Δ_i · min(1, C / ‖Δ_i‖) + N(0, (σ C)² I)) / m

    One worker more or less moves the sum by C at most. m is no count of who is there, and shares play no
    part: both would tell of a worker.

    Args:
        clip_norm: C, in the unit of a delta's Euclidean norm, above 0.
        noise_multiplier: σ, from 0 on.

    Raises:
        ConfigError: out of range.

    Example:
        >>> GaussianMechanism(2.0, 0.0).factors([1.0, 8.0], expected=2.0)
        (0.5, 0.125)
        >>> GaussianMechanism(2.0, 3.0).noise_std(4.0)
        1.5

    Source: McMahan et al. 2018, "Learning differentially private recurrent language models" (DP-FedAvg with a
    fixed denominator); Abadi et al. 2016, "Deep learning with differential privacy".
    """

    clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"the clipping norm must be above 0 and finite, got {self.clip_norm}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(
                f"the noise multiplier must be from 0 on and finite, got {self.noise_multiplier}"
            )

    def factors(self, norms: Sequence[float], *, expected: float) -> tuple[float, ...]:
        """What each delta is multiplied by: ``min(1, C / ‖Δ_i‖) / m``.

        Args:
            norms: of the deltas, finite.
            expected: m.
        """
        return tuple(min(1.0, self.clip_norm / norm if norm else 1.0) / expected for norm in norms)

    def noise_std(self, expected: float) -> float:
        """Of each coordinate of the result: ``σ C / m``."""
        return self.noise_multiplier * self.clip_norm / expected

    def noise(
        self, size: int, *, expected: float, dtype: torch.dtype, generator: np.random.Generator
    ) -> Tensor:
        """What is added to the result: ``(size,)``, normal with mean 0 and `noise_std`."""
        drawn = torch.from_numpy(generator.standard_normal(size))
        return (drawn * self.noise_std(expected)).to(dtype)


@dataclass(frozen=True)
class FixedWeights(Rule):
    """A sum of rows with weights that were settled elsewhere, whatever the shares.

    Args:
        weights: one for each row, in the order of the rows.

    Example:
        >>> FixedWeights((0.5, 2.0))(torch.tensor([[2.0], [3.0]]), torch.tensor([0.5, 0.5])).value
        tensor([7.])
    """

    basis: ClassVar[Basis] = "shares"
    name: ClassVar[str] = "fixed_weights"
    weights: tuple[float, ...]

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:  # noqa: ARG002 - the rule's signature
        """As given."""
        return Decision(weights=torch.tensor(self.weights, dtype=torch.float64))

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """The weighted sum."""
        assert decision.weights is not None
        return weighted_sum(rows, decision.weights.tolist())
