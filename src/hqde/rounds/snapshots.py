"""Members for free: a group's weights as they were earlier in the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hqde.errors import ConfigError
from hqde.rounds.state import RunState, Snapshot
from hqde.topology import Groups, RoundPlan
from hqde.weights import Weights


@dataclass(frozen=True)
class Snapshots:
    """``[ensemble.snapshots]``: members beside the groups' last weights.

    Each group's weights are kept at ``count`` epochs that divide the run evenly, j · E / (count + 1). With
    ``training.cycles = count + 1`` these are the ends of the cycles, where the learning rate is at its
    lowest.

    Args:
        count: how many for each group; 0 keeps none.
        join: whether they are members of the trained ensemble; else they wait in the run's pool, for
            ``hqde select``.

    Raises:
        ConfigError: a negative count.

    Example:
        >>> Snapshots(count=3).epochs(20)
        (5, 10, 15)

    Source: Huang et al. 2017, "Snapshot ensembles: train 1, get M for free"; Zhang et al. 2020, "Cyclical
    stochastic gradient MCMC for Bayesian deep learning".
    """

    count: int = 0
    join: bool = False

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"ensemble.snapshots.count must not be negative, got {self.count}")

    @property
    def num_joined(self) -> int:
        """Members that each group adds to the trained ensemble beside its last weights."""
        return self.count if self.join else 0

    def check(self, num_epochs: int, *, branches: bool) -> None:
        """Refuse a run that cannot have them.

        Raises:
            ConfigError: it is too short, or its groups change.
        """
        self.epochs(num_epochs)
        if self.count and branches:
            raise ConfigError(
                f"{self.count} snapshots of each group and branch_at exclude each other: before they "
                "branch there are no groups to keep; use topology.branch_at or ensemble.snapshots"
            )

    def epochs(self, num_epochs: int) -> tuple[int, ...]:
        """After which epochs of a run weights are kept, counted from 1.

        Raises:
            ConfigError: the run is too short for them.
        """
        if self.count and num_epochs <= self.count:
            raise ConfigError(
                f"{self.count} snapshots and the last weights need at least {self.count + 1} epochs, the run "
                f"has {num_epochs}; use fewer snapshots or more epochs"
            )
        return tuple(round(j * num_epochs / (self.count + 1)) for j in range(1, self.count + 1))


def keep_snapshot(snapshots: Snapshots, num_epochs: int, state: RunState, plan: RoundPlan) -> RunState:
    """The state after a round, with the groups' weights among its snapshots where they are due."""
    if not snapshots.count or not plan.ends_epoch or plan.epoch not in snapshots.epochs(num_epochs):
        return state
    committed = tuple(state.exact_for(group[0]) for group in plan.groups)
    return replace(state, snapshots=(*state.snapshots, Snapshot(plan.epoch, committed)))


def pooled(
    state: RunState, groups: Groups, last: tuple[Weights, ...]
) -> tuple[Groups, tuple[Weights, ...], dict[int, int]]:
    """The groups' last weights and then their snapshots, the oldest first: what a pool is made of.

    Snapshots from after the epoch that early stopping kept are left out.

    Returns:
        who made each, its weights, and the epoch of each snapshot by its place. With G groups, the place of
        group g's s-th snapshot is ``s · G + g``.
    """
    until = None if state.best is None else state.best.epoch
    kept = [snapshot for snapshot in state.snapshots if until is None or snapshot.epoch < until]
    weights = (*last, *(weights for snapshot in kept for weights in snapshot.committed))
    epochs = {
        (s + 1) * len(groups) + g: snapshot.epoch
        for s, snapshot in enumerate(kept)
        for g in range(len(groups))
    }
    return groups * (len(kept) + 1), weights, epochs
