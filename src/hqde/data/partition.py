"""Which rows each worker trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hqde.balance import split_by_shares
from hqde.errors import ConfigError, PreconditionError, did_you_mean
from hqde.seeding import derive_seed, generator

Shares = Sequence[float] | np.ndarray


@runtime_checkable
class Partitioner(Protocol):
    """Gives every worker its rows."""

    def assign(
        self, targets: Tensor, num_workers: int, *, epoch: int, seed: int, shares: Shares | None = None
    ) -> list[Tensor]:
        """Row numbers for each worker, in worker order.

        Args:
            targets: (n,) all training targets.
            num_workers: how many workers share the rows.
            epoch: counts from 0; only partitioners that draw afresh depend on it.
            seed: the run's seed.
            shares: (num_workers,) fraction of all rows for each worker, from a `hqde.balance.Balancer`; left
                out, or all equal, the workers get equally many.

        Returns:
            ``num_workers`` int64 index tensors, each with at least one row.

        Raises:
            PreconditionError: fewer rows than workers, or shares that are not one fraction for each.
            ConfigError: shares are given, and the partition leaves nothing to share out.
        """
        ...


@dataclass(frozen=True)
class Replicate:
    """Every worker trains on all rows.

    >>> Replicate().assign(torch.zeros(3), 2, epoch=0, seed=0)
    [tensor([0, 1, 2]), tensor([0, 1, 2])]
    """

    def assign(
        self, targets: Tensor, num_workers: int, *, epoch: int, seed: int, shares: Shares | None = None
    ) -> list[Tensor]:
        """All rows, for each worker; depends on neither ``epoch`` nor ``seed``."""
        del epoch, seed
        _refuse(shares, "replicate", "gives every worker all rows")
        num_rows = _check(targets, num_workers)
        return [torch.arange(num_rows) for _ in range(num_workers)]


@dataclass(frozen=True)
class Split:
    """All rows are dealt out, evenly or by shares, afresh every epoch: over time each worker sees every row.

    >>> [len(rows) for rows in Split().assign(torch.zeros(7), 3, epoch=0, seed=0)]
    [3, 2, 2]
    >>> [len(rows) for rows in Split().assign(torch.zeros(7), 3, epoch=0, seed=0, shares=[0.6, 0.3, 0.1])]
    [4, 2, 1]
    """

    def assign(
        self, targets: Tensor, num_workers: int, *, epoch: int, seed: int, shares: Shares | None = None
    ) -> list[Tensor]:
        """A random split of all rows, drawn from ``seed`` and ``epoch``; even sizes differ by at most one."""
        num_rows = _check(targets, num_workers)
        return _deal(num_rows, num_workers, generator(seed, "partition", "split", epoch), shares)


@dataclass(frozen=True)
class Iid:
    """All rows are dealt out once, evenly or by shares: each worker keeps its random share.

    The rows lie in one random order, cut into stretches. Where shares change from epoch to epoch the cuts
    move, and rows near them change hands.

    >>> torch.cat(Iid().assign(torch.zeros(5), 2, epoch=0, seed=0)).sort().values
    tensor([0, 1, 2, 3, 4])
    """

    def assign(
        self, targets: Tensor, num_workers: int, *, epoch: int, seed: int, shares: Shares | None = None
    ) -> list[Tensor]:
        """A random split of all rows, drawn from ``seed`` alone; even sizes differ by at most one."""
        del epoch
        num_rows = _check(targets, num_workers)
        return _deal(num_rows, num_workers, generator(seed, "partition", "iid"), shares)


@dataclass(frozen=True)
class Dirichlet:
    """Equal numbers of rows, unequal classes: worker k's class proportions are drawn from a Dirichlet.

    q_k ~ Dir(alpha · p) where p is the class distribution of all rows. A small ``alpha`` leaves a worker with
    few classes; a large one approaches `Iid`. Every row goes to exactly one worker and sizes differ by at
    most one; where the drawn proportions ask for more rows of a class than there are, the class is shared in
    proportion to what was asked and the workers' remaining proportions are renormalised.

    Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019, section 3.

    >>> parts = Dirichlet(alpha=0.1).assign(torch.arange(2).repeat(50), 4, epoch=0, seed=0)
    >>> [len(rows) for rows in parts]
    [25, 25, 25, 25]
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < float("inf"):
            raise ConfigError(
                f"alpha of the dirichlet partitioner must be above 0 and finite, not {self.alpha}"
            )

    def assign(
        self, targets: Tensor, num_workers: int, *, epoch: int, seed: int, shares: Shares | None = None
    ) -> list[Tensor]:
        """One fixed uneven split drawn from ``seed``; ``targets`` must be class ids."""
        del epoch
        _refuse(shares, "dirichlet", "is one fixed division, drawn for workers with equally many rows")
        num_rows = _check(targets, num_workers)
        if targets.is_floating_point():
            raise PreconditionError(
                f"the dirichlet partitioner needs class ids, but targets are {targets.dtype}; "
                "use replicate, split, iid or bootstrap for regression"
            )
        _, class_of_row, class_sizes = torch.unique(targets, return_inverse=True, return_counts=True)
        supply = class_sizes.numpy().astype(np.int64)
        rng = np.random.default_rng(derive_seed(seed, "partition", "dirichlet"))
        wanted = rng.dirichlet(self.alpha * supply / num_rows, size=num_workers)
        need = np.full(num_workers, num_rows // num_workers)
        need[: num_rows % num_workers] += 1
        counts = _share_out(wanted, need=need, supply=supply)

        shuffled = torch.randperm(num_rows, generator=generator(seed, "partition", "dirichlet", "rows"))
        by_class = shuffled[torch.argsort(class_of_row[shuffled], stable=True)]
        # by_class holds class 0's rows first; within a class the workers take theirs in turn
        owner = torch.from_numpy(
            np.repeat(np.tile(np.arange(num_workers), len(supply)), counts.T.reshape(-1))
        )
        return [by_class[owner == worker] for worker in range(num_workers)]


@dataclass(frozen=True)
class Bootstrap:
    """Each worker trains on its own n rows drawn with replacement, once (bagging, Breiman 1996).

    >>> [len(rows) for rows in Bootstrap().assign(torch.zeros(6), 2, epoch=0, seed=0)]
    [6, 6]
    """

    def assign(
        self, targets: Tensor, num_workers: int, *, epoch: int, seed: int, shares: Shares | None = None
    ) -> list[Tensor]:
        """n rows with replacement for each worker, drawn from ``seed`` and the worker's number."""
        del epoch
        _refuse(shares, "bootstrap", "draws as many rows as there are for every worker")
        num_rows = _check(targets, num_workers)
        return [
            torch.randint(num_rows, (num_rows,), generator=generator(seed, "partition", "bootstrap", worker))
            for worker in range(num_workers)
        ]


_NEGLIGIBLE = 1e-12  # a proportion below this asks for no row, and would overflow when divided by

PARTITIONERS = ("replicate", "split", "iid", "dirichlet", "bootstrap")


def make_partitioner(name: str, *, alpha: float = 0.5) -> Partitioner:
    """The partitioner called ``name``; ``alpha`` is read by ``dirichlet`` alone.

    Raises:
        ConfigError: unknown name.

    >>> make_partitioner("dirichlet", alpha=0.1)
    Dirichlet(alpha=0.1)
    """
    match name:
        case "replicate":
            return Replicate()
        case "split":
            return Split()
        case "iid":
            return Iid()
        case "dirichlet":
            return Dirichlet(alpha=alpha)
        case "bootstrap":
            return Bootstrap()
    raise ConfigError(f"unknown partitioner '{name}'; {did_you_mean(name, PARTITIONERS)}")


def _check(targets: Tensor, num_workers: int) -> int:
    if num_workers < 1:
        raise PreconditionError(f"num_workers must be at least 1, not {num_workers}")
    if len(targets) < num_workers:
        raise PreconditionError(
            f"fewer samples than workers: {len(targets)} rows for {num_workers} workers; "
            f"use at most {len(targets)} workers or more rows"
        )
    return len(targets)


def _refuse(shares: Shares | None, name: str, reason: str) -> None:
    if shares is not None:
        raise ConfigError(
            f"shares do not go with the {name} partition, which {reason}; use split or iid, or no balancer"
        )


def _deal(num_rows: int, num_workers: int, rng: torch.Generator, shares: Shares | None) -> list[Tensor]:
    if shares is not None and len(shares) != num_workers:
        raise PreconditionError(
            f"one share for each of the {num_workers} workers is needed, got {len(shares)}"
        )
    counts = split_by_shares(num_rows, [1 / num_workers] * num_workers if shares is None else shares)
    return [part.clone() for part in torch.randperm(num_rows, generator=rng).split(counts)]


def _share_out(wanted: np.ndarray, *, need: np.ndarray, supply: np.ndarray) -> np.ndarray:
    """Whole rows per (worker, class) near ``wanted``, using up both ``need`` and ``supply`` exactly.

    Args:
        wanted: (workers, classes) proportions, rows sum to 1.
        need: (workers,) rows each worker must get.
        supply: (classes,) rows each class has; sums to the same as ``need``.

    Returns:
        (workers, classes) int64 with row sums ``need`` and column sums ``supply``.
    """
    counts = np.zeros(wanted.shape, dtype=np.int64)
    wanted = np.where(wanted < _NEGLIGIBLE, 0.0, wanted)
    need, supply = need.copy(), supply.copy()
    while need.sum() > 0:
        share = np.where(supply > 0, wanted, 0.0)
        total = share.sum(axis=1, keepdims=True)
        # a worker all of whose classes are used up takes from what is left, in proportion
        share = np.where(total > 0, share / np.where(total > 0, total, 1.0), supply / supply.sum())
        asked = share * need[:, None]
        asked_of_class = asked.sum(axis=0)
        asked *= np.minimum(1.0, supply / np.where(asked_of_class > 0, asked_of_class, 1.0))
        given = np.floor(asked).astype(np.int64)
        if given.sum() == 0:  # only fractions are left: the largest first, one row each
            for flat in np.argsort(-asked, axis=None, kind="stable"):
                worker, label = divmod(int(flat), wanted.shape[1])
                if asked[worker, label] > 0 and need[worker] > 0 and supply[label] > 0:
                    given[worker, label] = 1
                    need[worker] -= 1
                    supply[label] -= 1
        else:
            need -= given.sum(axis=1)
            supply -= given.sum(axis=0)
        counts += given
    return counts
