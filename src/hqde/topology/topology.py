"""Which workers form which groups, round by round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hqde.errors import ConfigError
from hqde.topology.elastic import Elastic

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Topology:
    """The dial from one strong model (one group) to N diverse models (N groups).

    Workers stand in contiguous groups of equal size. Inside a group weights are averaged at the end of every
    round; between groups nothing is averaged, except in the two schedules below.

    Args:
        groups: number of groups G, which is the number of members of the ensemble; ``None`` gives every
            worker its own group (a deep ensemble).
        branch_at: fraction of the run in (0, 1) during which all workers form one group; then they part into
            ``groups``. ``None``: no such phase.
        trunk_workers: how many workers train while all stand together; ``None``: all of them. One is the
            cheapest trunk where workers share a machine: a single model learns more from the same number of
            examples than the average of several, and the others start from it when they branch.
        global_every: every k-th epoch all groups are averaged with each other as well (hierarchical FedAvg);
            0: never. Only epochs within the first ``global_until`` of the run qualify, so that members differ
            at the end.
        global_until: fraction of the run after which groups are left alone; must be below 1.
        every: ``"epoch"``, or the number of local steps between two synchronisations.
        elastic: how strongly workers are drawn to their group, and groups to each other; by default averaged
            and not at all.

    Raises:
        ConfigError: a value is out of range, one group is to branch, or two settings contradict each other.

    Example:
        >>> Topology(groups=2).groups_of(4)
        ((0, 1), (2, 3))
        >>> Topology.independent().groups_of(3)
        ((0,), (1,), (2,))

    Source: McMahan et al. 2017 (FedAvg); Liu et al. 2020 (hierarchical FedAvg); Fort et al. 2020 and
    Wasay et al. 2020 (branching late in training).
    """

    groups: int | None = None
    branch_at: float | None = None
    trunk_workers: int | None = None
    global_every: int = 0
    global_until: float = 0.75
    every: Literal["epoch"] | int = "epoch"
    elastic: Elastic = Elastic()

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups < 1:
            raise ConfigError(f"groups must be at least 1, got {self.groups}")
        if self.branch_at is not None and not 0 < self.branch_at < 1:
            raise ConfigError(
                f"branch_at is a fraction between 0 and 1 (both excluded), got {self.branch_at}"
            )
        if self.branch_at is not None and self.groups == 1:
            raise ConfigError(
                f"branch_at={self.branch_at} needs at least 2 groups to part into, got 1; drop it, or use "
                f"more groups"
            )
        if self.trunk_workers is not None and (self.branch_at is None or self.trunk_workers < 1):
            raise ConfigError(
                f"trunk_workers={self.trunk_workers} must be at least 1 and goes with branch_at, the "
                f"fraction of the run that the trunk takes"
            )
        if self.global_every < 0:
            raise ConfigError(
                f"global_every must be 0 (never) or a number of epochs, got {self.global_every}"
            )
        if not 0 < self.global_until < 1:
            raise ConfigError(
                f"global_until must lie between 0 and 1 (both excluded), so that members part before the "
                f"end, got {self.global_until}"
            )
        steps = isinstance(self.every, int) and not isinstance(self.every, bool) and self.every >= 1
        if self.every != "epoch" and not steps:
            raise ConfigError(f"every must be 'epoch' or a number of steps of at least 1, got {self.every!r}")
        self._check_elastic()

    @classmethod
    def independent(cls) -> Topology:
        """Every worker its own member: a deep ensemble (Lakshminarayanan et al. 2017)."""
        return cls(groups=None)

    @classmethod
    def fedavg(cls) -> Topology:
        """All workers in one group: one model, averaged every round (McMahan et al. 2017)."""
        return cls(groups=1)

    @property
    def mixes_groups(self) -> bool:
        """Whether groups are averaged with each other, or drawn together, so that they need one start."""
        return self.branch_at is not None or self.global_every > 0 or self.elastic.couples_groups

    def num_groups(self, num_workers: int) -> int:
        """Number of members at the end of a run with ``num_workers`` workers.

        Raises:
            ConfigError: the groups do not divide the workers, or workers are to be drawn to a group of one.
        """
        if num_workers < 1:
            raise ConfigError(f"a run needs at least 1 worker, got {num_workers}")
        groups = num_workers if self.groups is None else self.groups
        if num_workers % groups:
            divisors = [g for g in range(1, num_workers + 1) if num_workers % g == 0]
            raise ConfigError(
                f"{groups} groups do not divide {num_workers} workers evenly; use one of {divisors} groups "
                f"or a multiple of {groups} workers"
            )
        if self.elastic.keeps_replicas and groups == num_workers:
            raise ConfigError(
                f"elastic.group_pull={self.elastic.group_pull:g} draws workers to their group's centre, and "
                f"with {groups} groups of {num_workers} workers each is alone in its group; use fewer groups "
                f"or elastic.global_pull, which draws groups to each other"
            )
        return groups

    def num_trunk_workers(self, num_workers: int) -> int:
        """Number of workers that train before the groups branch.

        Raises:
            ConfigError: more than there are.
        """
        if self.trunk_workers is not None and self.trunk_workers > num_workers:
            raise ConfigError(f"trunk_workers={self.trunk_workers} is more than the {num_workers} workers")
        return self.trunk_workers or num_workers

    def groups_of(self, num_workers: int) -> Groups:
        """The groups at the end of the run, as tuples of worker ids."""
        size = num_workers // self.num_groups(num_workers)
        return tuple(tuple(range(start, start + size)) for start in range(0, num_workers, size))

    def _check_elastic(self) -> None:
        elastic = self.elastic
        if (elastic.keeps_replicas or elastic.couples_groups) and self.branch_at is not None:
            raise ConfigError(
                f"branch_at={self.branch_at} parts all workers at once, elastic couplings by and by; "
                f"use one of the two"
            )
        if elastic.couples_groups and self.global_every:
            raise ConfigError(
                f"global_every={self.global_every} averages groups in some epochs and elastic.global_pull "
                f"draws them together after every round; use one of the two"
            )
        if elastic.couples_groups and self.groups == 1:
            raise ConfigError(
                "elastic.global_pull draws groups to each other and there is 1 group; use more groups, or "
                "elastic.group_pull, which draws workers to their group"
            )
