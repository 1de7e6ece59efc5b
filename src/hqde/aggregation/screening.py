"""Further checks on admitted updates, for those who want them: a norm bound, and a held-out improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.errors import ConfigError, PreconditionError

NormState = dict[str, Tensor]
"""``{"medians": (k,)}`` float64: the median norms of the last rounds, oldest first."""


@dataclass(frozen=True)
class NormBound:
    """Refuses deltas that are much longer than is usual, where what is usual is learnt as the run goes on.

    The bound is ``factor`` times the median of the round's own median norm and those of the last ``window``
    rounds. As long as most workers are honest, every one of these medians lies among honest norms.

    Args:
        factor: above 1.
        window: rounds.

    Example:
        >>> bound = NormBound(factor=4.0)
        >>> refused, state = bound.judge(torch.tensor([1.0, 1.2, 0.9, 50.0]), bound.init())
        >>> refused
        {3: 'the norm of its delta is 50, above 4, which is 4 times what is usual'}

    Source: Sun et al. 2019, "Can you really backdoor federated learning?" (norm thresholding); Andrew et al.
    2021, "Differentially private learning with adaptive clipping" (a bound that follows a quantile).
    """

    uses_server_data: ClassVar[bool] = False
    factor: float = 5.0
    window: int = 10

    def __post_init__(self) -> None:
        if not 1 < self.factor < math.inf or self.window < 0:
            raise ConfigError(
                f"a norm bound needs a factor above 1 and a window from 0 on, got {self.factor} and "
                f"{self.window}"
            )

    def init(self) -> NormState:
        """No round has been seen."""
        return {"medians": torch.zeros(0, dtype=torch.float64)}

    def judge(self, norms: Tensor, state: NormState) -> tuple[dict[int, str], NormState]:
        """Positions of deltas to refuse, with the reason, and the next state.

        Args:
            norms: ``(n,)`` Euclidean norms of the round's admitted deltas, finite.
            state: never mutated.

        Raises:
            PreconditionError: a norm is negative or not finite.
        """
        if norms.ndim != 1 or not bool((torch.isfinite(norms) & (norms >= 0)).all()):
            raise PreconditionError(f"norms are finite numbers (n,) from 0 on, got {norms.tolist()}")
        if not len(norms):
            return {}, state
        norms = norms.double()
        medians = torch.cat([state["medians"], norms.median().reshape(1)])
        usual = float(medians.median())
        refused = {
            i: f"the norm of its delta is {norm:.4g}, above {self.factor * usual:.4g}, which is "
            f"{self.factor:g} times what is usual"
            for i, norm in enumerate(norms.tolist())
            if norm > self.factor * usual > 0.0
        }
        return refused, {"medians": medians[len(medians) - min(len(medians), self.window) :]}


@dataclass(frozen=True)
class HeldOutImprovement:
    """Refuses deltas that make the group's model worse on a few held-out rows of the server's own.

    It uses data that the server must have, which federated averaging does not ask for; reports say so
    (``uses_server_data``).

    Args:
        max_increase: by how much a delta may raise the held-out loss, in units of the loss.

    Example:
        >>> HeldOutImprovement(max_increase=0.05).judge(1.0, [0.9, 1.04, 2.5])
        {2: 'its delta raises the held-out loss from 1 to 2.5'}

    Source: Xie, Koyejo, Gupta 2019, "Zeno: distributed stochastic gradient descent with suspicion-based
    fault-tolerance", in the form of a threshold.
    """

    uses_server_data: ClassVar[bool] = True
    max_increase: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_increase < math.inf:
            raise ConfigError(f"max_increase must be from 0 on and finite, got {self.max_increase}")

    def judge(self, loss_before: float, losses: Sequence[float]) -> dict[int, str]:
        """Positions of deltas to refuse, with the reason.

        Args:
            loss_before: mean held-out loss of the group's weights.
            losses: of the weights with each delta added. One that is not finite is refused.

        Raises:
            PreconditionError: the loss before is not finite.
        """
        if not math.isfinite(loss_before):
            raise PreconditionError(f"the held-out loss before the round must be finite, got {loss_before}")
        return {
            i: f"its delta raises the held-out loss from {loss_before:.4g} to {loss:.4g}"
            for i, loss in enumerate(losses)
            if not loss <= loss_before + self.max_increase  # written so that NaN is refused
        }
