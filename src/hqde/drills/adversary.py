"""Workers that mean ill: a backend some of whose workers hand in what an attack makes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hqde.aggregation import Attack, Update, count_nonfinite, flip_labels
from hqde.backends import Backend, Outcome, StepReport, Supervisor, WrappedBackend
from hqde.data import Batch, Examples
from hqde.errors import PreconditionError
from hqde.seeding import generator
from hqde.topology import Groups
from hqde.training import Order, WorkerSpec


@dataclass(frozen=True)
class LabelFlip:
    """Bad workers train honestly on wrong labels.

    Args:
        mapping: class to class; left out, y becomes C - 1 - y.
    """

    mapping: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class ReplayFirst:
    """Bad workers hand in their first update, which was honest, in every round."""


AnyAttack = Attack | LabelFlip | ReplayFirst


def bad_workers(groups: Groups, num_byzantine: int) -> frozenset[int]:
    """The last ``num_byzantine`` workers of every group.

    Raises:
        PreconditionError: a group would have no honest worker left.

    >>> sorted(bad_workers(((0, 1, 2), (3, 4, 5)), 1))
    [2, 5]
    """
    smallest = min(len(group) for group in groups)
    if not 0 <= num_byzantine < smallest:
        raise PreconditionError(
            f"{num_byzantine} bad workers in groups of {smallest} leave nobody honest; take fewer"
        )
    return frozenset(worker for group in groups for worker in group[len(group) - num_byzantine :])


class BadWorkers(WrappedBackend):
    """Any backend, with bad workers. An attack sees the deltas of the honest ones of its group.

    Bad workers train as well, so that everything but their update is as usual: times, losses, random streams.

    Args:
        inner: where the workers live.
        attack: what the bad ones do.
        bad: who they are.
        num_classes: of the labels, for ``LabelFlip``.
        seed: of attacks that draw.
    """

    def __init__(
        self, inner: Backend, attack: AnyAttack, bad: frozenset[int], *, num_classes: int, seed: int = 0
    ) -> None:
        super().__init__(inner)
        self.attack = attack
        self.bad = bad
        self._num_classes = num_classes
        self._seed = seed
        self._num_rows = 0
        self._first: dict[int, Tensor] = {}

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Pass on; with flipped labels, every row is there twice."""
        self._num_rows = len(examples)
        if isinstance(self.attack, LabelFlip):
            mapping = None if self.attack.mapping is None else dict(self.attack.mapping)
            examples = WithFlippedTwin(examples, self._num_classes, mapping)
        self.inner.start(specs, examples)

    def train(
        self,
        orders: Sequence[Order],
        *,
        on_step: StepReport | None = None,
        supervisor: Supervisor | None = None,
    ) -> Iterator[Outcome]:
        """Pass on, and put the attack's rows in place of those of the bad workers."""
        if isinstance(self.attack, LabelFlip):
            flipped = [
                replace(order, shard=order.shard + self._num_rows) if order.worker_id in self.bad else order
                for order in orders
            ]
            yield from self.inner.train(flipped, on_step=on_step, supervisor=supervisor)
            return
        outcomes = list(self.inner.train(orders, on_step=on_step, supervisor=supervisor))
        if isinstance(self.attack, ReplayFirst):
            yield from map(self._replayed, outcomes)
            return
        groups: dict[int, set[int]] = defaultdict(set)
        for order in orders:
            groups[id(order.start.vector)].add(order.worker_id)
        for place, group in enumerate(groups.values()):
            yield from self._attacked([o for o in outcomes if o.worker_id in group], place, self.attack)

    def _replayed(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Update) or outcome.worker_id not in self.bad:
            return outcome
        first = self._first.setdefault(outcome.worker_id, self.fetch(outcome.delta).clone())
        return replace(outcome, delta=first)

    def _attacked(self, outcomes: Sequence[Outcome], place: int, attack: Attack) -> list[Outcome]:
        updates = {outcome.worker_id: outcome for outcome in outcomes if isinstance(outcome, Update)}
        deltas = [self.fetch(u.delta) for worker, u in sorted(updates.items()) if worker not in self.bad]
        honest = [delta for delta in deltas if not count_nonfinite(delta)]
        bad = sorted(worker for worker in updates if worker in self.bad)
        if not honest or not bad:
            return list(outcomes)
        draws = generator(self._seed, "attack", updates[bad[0]].round_index, place)
        rows = attack(torch.stack(honest), len(bad), generator=draws)
        spoilt = {worker: replace(updates[worker], delta=row) for worker, row in zip(bad, rows, strict=True)}
        return [spoilt.get(outcome.worker_id, outcome) for outcome in outcomes]


class WithFlippedTwin:
    """Rows 0 to n - 1 as they are, rows n to 2n - 1 the same with wrong labels.

    Args:
        examples: n of them.
        num_classes: of their labels.
        mapping: class to class; left out, y becomes C - 1 - y.
    """

    def __init__(self, examples: Examples, num_classes: int, mapping: dict[int, int] | None) -> None:
        self._examples = examples
        wrong = flip_labels(examples.targets, num_classes, mapping=mapping)
        self.targets = torch.cat([examples.targets, wrong])

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, index: Tensor) -> Batch:
        """The rows that ``index`` (k,) names."""
        return Batch(self._examples.fetch(index % len(self._examples)).inputs, self.targets[index])
