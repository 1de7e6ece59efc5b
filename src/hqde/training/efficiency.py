"""The seed's efficiency score of a worker."""

from __future__ import annotations

import math

INITIAL_EFFICIENCY = 1.0


def update_efficiency(score: float, loss: float) -> float:
    """One step of the score: ``max(0.1, 0.99 · score + 0.01 / (1 + loss))``.

    Args:
        score: the score so far, starting at 1.
        loss: the step's mean training loss; one that is not finite adds nothing, and a negative one (a
            Gaussian likelihood above 1) counts as 0, where the seed's formula would run into its pole at -1.

    Example:
        >>> update_efficiency(1.0, 1.0)
        0.995
        >>> update_efficiency(0.1, float("nan"))
        0.1
    """
    gain = 1.0 / (1.0 + max(0.0, loss)) if math.isfinite(loss) else 0.0
    return max(0.1, score * 0.99 + 0.01 * gain)
