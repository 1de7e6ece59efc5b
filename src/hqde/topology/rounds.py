"""From a topology to the list of rounds of a run. Pure: no clocks, no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hqde.errors import ConfigError
from hqde.topology.topology import Groups, Topology

Scope = Literal["none", "group", "global"]


@dataclass(frozen=True)
class RoundPlan:
    """What one round does, decided before the run starts.

    Attributes:
        index: 1, 2, … over the whole run.
        epoch: 1, 2, …; a round never crosses the end of an epoch.
        first_batch: index of the first batch of the epoch that belongs to the round.
        num_batches: batches in the round; ``None`` means all that are left of the epoch.
        groups: who is averaged with whom.
        scope: ``"none"`` when every group has one worker, ``"group"``, or ``"global"`` when all groups are
            averaged with each other, or drawn to their mean, after their own averaging.
        branches: the groups part at the start of this round.
        ends_epoch: the last round of its epoch.
        progress: fractions of the run at the round's start and end, for schedules.
        group_pull: how far a worker is drawn from its own weights to the group's when the round begins;
            ``None`` where workers have none of their own.
        global_pull: how far groups are drawn to their mean when a round of scope ``"global"`` ends.
    """

    index: int
    epoch: int
    first_batch: int
    num_batches: int | None
    groups: Groups
    scope: Scope
    branches: bool
    ends_epoch: bool
    progress: tuple[float, float]
    group_pull: float | None = None
    global_pull: float = 1.0


def branch_epoch(topology: Topology, epochs: int) -> int | None:
    """The first epoch (1-based) in which the groups stand apart; ``None`` when they never stood together.

    Raises:
        ConfigError: the run is too short to have both phases.
    """
    if topology.branch_at is None:
        return None
    together = round(topology.branch_at * epochs)
    if not 0 < together < epochs:
        raise ConfigError(
            f"branch_at={topology.branch_at} of {epochs} epochs leaves {together} epochs together and "
            f"{epochs - together} apart; both must be at least 1, so use more epochs or another fraction"
        )
    return together + 1


def plan_rounds(
    topology: Topology,
    num_workers: int,
    *,
    epochs: int,
    batches_per_epoch: int,
    trunk_batches_per_epoch: int | None = None,
) -> tuple[RoundPlan, ...]:
    """Lay out every round of a run.

    Args:
        topology: who is averaged with whom, and how often.
        num_workers: workers in the run.
        epochs: passes of each worker over its shard, at least 1.
        batches_per_epoch: batches of the worker that has most, at least 1.
        trunk_batches_per_epoch: the same before the groups branch; left out, no different.

    Returns:
        the rounds in order; their ``progress`` intervals tile [0, 1].

    Raises:
        ConfigError: epochs or batches below 1, or a topology that does not fit the workers or the epochs.

    Example:
        >>> plans = plan_rounds(Topology(groups=2, branch_at=0.5), 4, epochs=2, batches_per_epoch=10)
        >>> [(p.epoch, p.groups, p.branches) for p in plans]
        [(1, ((0, 1, 2, 3),), False), (2, ((0, 1), (2, 3)), True)]
    """
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    trunk_batches = batches_per_epoch if trunk_batches_per_epoch is None else trunk_batches_per_epoch
    if min(batches_per_epoch, trunk_batches) < 1:
        raise ConfigError(f"an epoch must have at least 1 batch, got {min(batches_per_epoch, trunk_batches)}")
    apart = topology.groups_of(num_workers)
    trunk: Groups = (tuple(range(topology.num_trunk_workers(num_workers))),)
    branch, elastic = branch_epoch(topology, epochs), topology.elastic
    plans: list[RoundPlan] = []
    for epoch in range(1, epochs + 1):
        in_trunk = branch is not None and epoch < branch
        groups, batches = (trunk, trunk_batches) if in_trunk else (apart, batches_per_epoch)
        step = batches if topology.every == "epoch" else topology.every
        per_epoch, total = math.ceil(batches / step), epochs * batches
        for part in range(per_epoch):
            last = part == per_epoch - 1
            first = (epoch - 1) * batches + part * step
            reach = epoch * batches if last else first + step
            progress = (first / total, reach / total)
            scope, global_pull = _scope(
                topology, groups, epoch=epoch, epochs=epochs, end=progress[1], last=last
            )
            plans.append(
                RoundPlan(
                    index=len(plans) + 1,
                    epoch=epoch,
                    first_batch=part * step,
                    num_batches=None if last else step,
                    groups=groups,
                    scope=scope,
                    branches=branch == epoch and part == 0,
                    ends_epoch=last,
                    progress=progress,
                    group_pull=elastic.group_pull_at(progress[0]) if elastic.keeps_replicas else None,
                    global_pull=global_pull,
                )
            )
    return tuple(plans)


def _scope(
    topology: Topology, groups: Groups, *, epoch: int, epochs: int, end: float, last: bool
) -> tuple[Scope, float]:
    """What is averaged when the round ends, and how far groups are drawn to their mean if it is all."""
    due = topology.global_every and last and epoch % topology.global_every == 0
    if due and len(groups) > 1 and epoch <= topology.global_until * epochs:
        return "global", 1.0
    pull = topology.elastic.global_pull_at(end)
    if pull > 0.0 and len(groups) > 1:
        return "global", pull
    return ("group" if any(len(group) > 1 for group in groups) else "none"), 1.0
