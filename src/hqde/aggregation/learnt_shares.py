"""Shares that a server with a few rows of its own learns in every round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.errors import ConfigError, PreconditionError

Slope = Callable[[Tensor], tuple[float, Tensor]]
"""Shares ``(n,)`` to a loss and its gradient ``(n,)``; where the loss is not finite, nobody looks at that."""


@dataclass(frozen=True)
class LearntShares:
    """The shares of a round whose weighted mean has the least loss on held-out rows of the server's own.

    From the usual shares s, steps of exponentiated gradient: ``s ← s · exp(−η (g − ⟨s, g⟩))``, scaled to the
    sum 1, where g is the gradient of the loss in the shares. η begins so that no exponent is beyond 1, grows
    by half after a step that lowers the loss, and is halved after one that does not and is not made. A share
    that falls below ``least`` times an equal one becomes 0, and η begins anew, for whoever is left.

    It uses data that the server must have, which federated averaging does not ask for; reports say so
    (``uses_server_data``). A worker counts for as much as it helps on these rows, whatever its reason for not
    helping: noise, wrong labels, or rows that others have too. So it bears any number of bad workers as long
    as the rest can lower the loss, and wants rows of all classes.

    Args:
        steps: losses that are looked at in each round; one more for each row where that of the first mean is
            not finite.
        least: of an equal share, in [0, 1). Who begins with less may stay so.

    Raises:
        ConfigError: no steps, or ``least`` out of range.

    Example:
        >>> points = torch.tensor([0.0, 1.0, 50.0], dtype=torch.float64)
        >>> # The loss of a mean is its squared distance to 0.4.
        >>> def slope(shares):
        ...     away = float(shares @ points) - 0.4
        ...     return away * away, 2 * away * points
        >>> LearntShares(steps=100).learn(torch.full((3,), 1 / 3), slope)[0].tolist()[2]
        0.0

    Source: Li et al. 2023, "Revisiting weighted aggregation in federated learning with neural networks"
    (weights learnt on proxy data); Kivinen and Warmuth 1997, "Exponentiated gradient versus gradient descent
    for linear predictors".
    """

    uses_server_data: ClassVar[bool] = True
    steps: int = 20
    least: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.least < 1:
            raise ConfigError(
                f"learnt shares need a step and a least share in [0, 1), got {self.steps} and {self.least}"
            )

    def learn(self, shares: Tensor, slope: Slope) -> tuple[Tensor, dict[int, str]]:
        """The learnt shares ``(n,)`` float64, and for each that became 0, by position, the reason.

        Where the loss of the mean is not finite, the start is that of the rows whose own loss is; where none
        is, the shares stay.

        Args:
            shares: ``(n,)``, not negative, with the sum 1; never mutated.
            slope: the loss of a weighted mean, and how it changes with the shares.

        Raises:
            PreconditionError: the shares are none.
        """
        if shares.ndim != 1 or not bool((shares >= 0).all()) or not abs(float(shares.sum()) - 1.0) <= 1e-6:
            raise PreconditionError(f"shares (n,) are not negative and sum to 1, got {shares.tolist()}")
        floor, now = self.least / len(shares), shares.double()
        loss, gradient = _finite(slope, now)
        if not math.isfinite(loss):
            now = _finite_start(now, slope)
            loss, gradient = _finite(slope, now)
        if not math.isfinite(loss):
            return shares.double(), {}
        rate = _first_rate(now, gradient, floor)
        for _ in range(self.steps - 1):
            away = gradient - now @ gradient
            # Nobody moves farther than those who count: a huge row that hardly does would stop all others.
            limit = float(rate * away[now >= floor].abs().max())
            ahead = now * torch.exp((-rate * away).clamp(-limit, limit))
            ahead /= ahead.sum()
            ahead[(ahead < floor) & (now >= floor)] = 0.0
            ahead /= ahead.sum()
            loss_ahead, gradient_ahead = _finite(slope, ahead)
            if loss_ahead < loss:
                without = bool((ahead == 0.0).sum() > (now == 0.0).sum())
                now, loss, gradient = ahead, loss_ahead, gradient_ahead
                rate = _first_rate(now, gradient, floor) if without else 1.5 * rate
            else:
                rate *= 0.5
        nothing = (now == 0.0).nonzero().flatten().tolist()
        return now, dict.fromkeys(nothing, "on the server's held-out rows its share came to nothing")


def _finite(slope: Slope, shares: Tensor) -> tuple[float, Tensor]:
    """The slope in the shares that are not 0; an infinite loss where something of it is not finite."""
    loss, gradient = slope(shares)
    gradient = torch.where(shares > 0.0, gradient.double(), 0.0)
    return (loss if bool(torch.isfinite(gradient).all()) else math.inf), gradient


def _first_rate(shares: Tensor, gradient: Tensor, floor: float) -> float:
    """What moves no exponent of a share from ``floor`` on by more than 1."""
    away = (gradient - shares @ gradient)[shares >= floor].abs()
    return 1.0 / max(float(away.max()), 1e-12)


def _finite_start(shares: Tensor, slope: Slope) -> Tensor:
    """The shares of the rows whose own loss is finite."""
    alone = torch.eye(len(shares), dtype=shares.dtype)
    finite = torch.tensor([math.isfinite(slope(row)[0]) for row in alone])
    kept = torch.where(finite, shares, 0.0)
    return kept / kept.sum() if bool(kept.sum() > 0) else shares
