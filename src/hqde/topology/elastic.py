"""Replica annealing: how strongly workers are drawn to their group's centre, and groups to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hqde.errors import ConfigError


@dataclass(frozen=True)
class Elastic:
    """Replica annealing: coupled copies of one model, with a coupling that changes over the run.

    In plain mathematics: worker i of a group has weights x_i of its own, the group has a centre c. A worker
    begins each round at

        x_i ← x_i + α (c − x_i)

    trains, and hands in x_i − c; the group's rule makes the next centre of that, ``c ← c + rule(x_i − c)``,
    with the mean: the mean of the x_i. After each round the centres c_g of the groups are drawn to their own
    mean C in the same way, ``c_g ← c_g + γ (C − c_g)``. The members of the ensemble are the groups' centres.

    That is one explicit step of gradient descent on ``Σ_i L(x_i) + κ/2 Σ_i ‖x_i − c‖²``, the energy of the
    replicas in the path integral of simulated quantum annealing, with c in place of the two neighbours in
    imaginary time. Followed for a round exactly, a coupling κ is a pull of ``1 − exp(−κ)``: 0 never meets,
    which are independent workers, and 1 (κ infinite) puts everybody back to the centre, which is federated
    averaging. Both ends are met to the bit, or to rounding where sums are made in another order.

    Args:
        group_pull: α when the run begins, in [0, 1]; 1 is averaging as ever.
        group_pull_end: α when it ends; ``None``: as at the start.
        global_pull: γ when the run begins, in [0, 1]; 0 leaves groups alone.
        global_pull_end: γ when it ends; ``None``: as at the start.
        shape: of the way between them: ``"linear"``, or ``"cosine"``, which is slow at both ends.

    Raises:
        ConfigError: a pull outside [0, 1], or another shape.

    Example:
        >>> anneal = Elastic(group_pull=0.0, group_pull_end=0.8)
        >>> [round(anneal.group_pull_at(p), 2) for p in (0.0, 0.5, 1.0)]
        [0.0, 0.4, 0.8]

    Source: Zhang, Choromanska, LeCun 2015, "Deep learning with elastic averaging SGD"; Baldassi et al. 2016,
    "Unreasonable effectiveness of learning neural networks" (replicas around a centre); Baldassi and Zecchina
    2018, "Efficiency of quantum vs. classical annealing in nonconvex learning problems".
    """

    group_pull: float = 1.0
    group_pull_end: float | None = None
    global_pull: float = 0.0
    global_pull_end: float | None = None
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        for name in ("group_pull", "group_pull_end", "global_pull", "global_pull_end"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(
                    f"{name} lies between 0 (never drawn together) and 1 (averaged), got {value}; a coupling "
                    f"k is a pull of 1 - exp(-k)"
                )
        if self.shape not in ("linear", "cosine"):
            raise ConfigError(f"elastic.shape must be 'linear' or 'cosine', got {self.shape!r}")

    @property
    def keeps_replicas(self) -> bool:
        """Whether workers have weights of their own beside their group's."""
        return not (self.group_pull == 1.0 and self.group_pull_end in (None, 1.0))

    @property
    def couples_groups(self) -> bool:
        """Whether groups are drawn to each other at some time."""
        return self.global_pull > 0.0 or (self.global_pull_end or 0.0) > 0.0

    def group_pull_at(self, progress: float) -> float:
        """α where so much of the run is done, a fraction."""
        return self._between(self.group_pull, self.group_pull_end, progress)

    def global_pull_at(self, progress: float) -> float:
        """γ where so much of the run is done, a fraction."""
        return self._between(self.global_pull, self.global_pull_end, progress)

    def _between(self, start: float, end: float | None, progress: float) -> float:
        if end is None or end == start:
            return start
        part = progress if self.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
        return start + (end - start) * part
