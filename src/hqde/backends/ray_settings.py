"""How workers are laid out on Ray: settings, without Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hqde.errors import ConfigError

PlanName = Literal["auto", "flat", "tree", "sharded"]
PLANS: tuple[PlanName, ...] = ("auto", "flat", "tree", "sharded")
FAN_INS = (4, 8, 16)


@dataclass(frozen=True)
class RaySettings:
    """``[ray]``: where the cluster is, what a worker takes of it, how sums are spread over it.

    Args:
        address: ``host:port`` of a cluster, ``auto`` (the one that runs on this machine) or ``local`` (start
            one here); left out, ``RAY_ADDRESS`` counts, and without it a Ray is started on this machine for
            the run.
        num_cpus: CPUs of each worker; 0 shares out what there is. Threads of a worker follow it, unless
            ``run.threads`` says otherwise.
        num_gpus: GPUs of each worker: 0, 1/k (k workers share one), or a whole number.
        plan: ``flat`` (the driver adds up), ``tree``, ``sharded``, or ``auto`` (the cheapest, by a model).
        fan_in: updates that one step of a tree adds up: 4, 8 or 16.
        num_shards: coordinate shards of an update; 0 takes one for each node, at least two.
        link_gbit: speed of each machine's link in Gbit/s, which ``auto`` reckons with.
        min_workers: with 0 all workers must fit on the cluster; with more the run starts, and goes on, with
            as many of them as there is room for, but never fewer than this. Each takes ``num_cpus``, or 1.
        replication_factor: nodes that hold a copy of the workers' states and of the committed weights; 0
            takes 2 where there are two nodes, else 1.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> RaySettings(num_gpus=0.25).plan
        'auto'
    """

    address: str | None = None
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    plan: PlanName = "auto"
    fan_in: int = 8
    num_shards: int = 0
    link_gbit: float = 10.0
    min_workers: int = 0
    replication_factor: int = 0

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"ray.{name} must not be negative and be finite, got {value}")
            if value > 1 and value != int(value):
                raise ConfigError(f"ray.{name} above 1 must be a whole number, got {value}")
        if 0 < self.num_gpus < 1 and abs(1 / self.num_gpus - round(1 / self.num_gpus)) > 1e-3:
            nearest = 1 / math.ceil(1 / self.num_gpus)
            raise ConfigError(
                f"ray.num_gpus below 1 must be 1/k, so that k workers fill a GPU; got {self.num_gpus}, "
                f"the next smaller one is {nearest:.4g}"
            )
        if self.plan not in PLANS:
            raise ConfigError(f"ray.plan must be one of {', '.join(PLANS)}, got {self.plan!r}")
        if self.fan_in not in FAN_INS:
            raise ConfigError(f"ray.fan_in must be 4, 8 or 16, got {self.fan_in}")
        if not 0 < self.link_gbit < math.inf:
            raise ConfigError(f"ray.link_gbit must be above 0 and finite, got {self.link_gbit}")
        for name in ("num_shards", "min_workers", "replication_factor"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ray.{name} must not be negative, got {getattr(self, name)}")
