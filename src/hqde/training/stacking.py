"""Workers of one architecture trained in one pass: models, optimizers and batches behind each other."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hqde.aggregation import Update
from hqde.data import reads_side_by_side
from hqde.errors import OutOfMemoryError
from hqde.models import Dropout
from hqde.seeding import generator, seeded
from hqde.training.alike import check_alike
from hqde.training.masks import MaskPlan, plan_masks
from hqde.training.memory import is_out_of_memory
from hqde.training.order import Order
from hqde.training.perceptrons import perceptron_of
from hqde.training.stacked import Stacked
from hqde.training.tally import Tally
from hqde.training.vmapped import Calling, Vmapped
from hqde.training.worker import Worker

if TYPE_CHECKING:
    from hqde.training.perceptron_steps import StackedPerceptrons


class Stack:
    """Some workers, trained together.

    Args:
        workers: of one architecture and one recipe but for their learning and dropout rates.

    Raises:
        PreconditionError: they differ in more, or train in a way that cannot be stacked.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        check_alike(self.workers)
        first = self.workers[0]
        with seeded(first.spec.seed, "stack"):
            rates = [w.spec.dropout_rate for w in self.workers if w.spec.dropout_rate is not None]
            model = first.spec.model.build(dropout_rate=max(rates, default=None))
        self._model = Calling(model.to(first.device)).train()
        self._dropout = [[m.p for m in w.model.modules() if isinstance(m, Dropout)] for w in self.workers]
        self._masks: MaskPlan | None = None
        self._vmapped, self._perceptrons = Vmapped(first, self._model), _perceptrons(first)

    @property
    def is_perceptron(self) -> bool:
        """Whether it is trained without ``torch.vmap``."""
        return self._perceptrons is not None

    def use_vmap(self) -> None:
        """Do not train it as a perceptron."""
        self._perceptrons = None

    def train_round(
        self, orders: Sequence[Order], *, on_step: Callable[[int, int, int], None] | None = None
    ) -> list[Update | tuple[Order, Exception]]:
        """Train the workers that have orders.

        Args:
            orders: for some of the stack's workers.
            on_step: called with (worker id, batches done, batches in the round).

        Returns:
            For each order an update, or the order and what went wrong with it.

        Raises:
            OutOfMemoryError: a step of so many workers needs more memory than there is. They are as they
                were, so that fewer of them at a time may be given these orders again.
        """
        began, began_cpu = time.perf_counter(), time.thread_time()
        by_id = {worker.spec.worker_id: place for place, worker in enumerate(self.workers)}
        orders = sorted(orders, key=lambda order: order.worker_id)
        places = [by_id[order.worker_id] for order in orders]
        workers = [self.workers[place] for place in places]
        run = _Round(self, orders, places)
        try:
            failed = self._carry_out(run, on_step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"a step of {len(workers)} worker(s), {workers[0].spec.recipe.batch_size} rows and "
                f"{workers[0].layout.size:,} weights each, ran out of memory ({str(error).splitlines()[0]})"
            ) from error
        share = (time.perf_counter() - began) / len(orders)
        cpu_s = (time.thread_time() - began_cpu) / len(orders) if torch.get_num_threads() == 1 else None
        data_s = run.data_s / len(orders)
        outcomes: list[Update | tuple[Order, Exception]] = []
        for place, (worker, order, tally) in enumerate(zip(workers, orders, run.tallies(), strict=True)):
            if place in failed:
                outcomes.append((order, failed[place]))
                continue
            started = time.perf_counter() - share
            outcomes.append(worker.finish(order, tally, began=started, data_s=data_s, cpu_s=cpu_s))
        return outcomes

    def _carry_out(
        self,
        run: _Round,
        on_step: Callable[[int, int, int], None] | None,
    ) -> dict[int, Exception]:
        """All steps, on copies of what the workers hold, who get it last of all; which failed, and why."""
        failed: dict[int, Exception] = {}
        way = self._perceptrons or self._vmapped
        state = way.begin(run._workers, run._orders)
        for step in range(max(map(len, run.batches), default=0)):
            for group in run.groups(step, failed):
                run.step(step, group, state, failed)
            if on_step is not None:
                for order, own in zip(run._orders, run.batches, strict=True):
                    on_step(order.worker_id, min(step + 1, len(own)), len(own))
        way.end(run._workers, state)
        return failed

    def step(
        self,
        state: Stacked,
        inputs: object,
        targets: Tensor,
        places: Sequence[int],
        generators: Sequence[torch.Generator],
        rates: Sequence[float],
    ) -> tuple[Tensor, Tensor | None]:
        """One step of some workers, as ``Vmapped.step`` gives it.

        Args:
            state: of these workers.
            inputs, targets: ``(w, n, …)`` and ``(w, n)``.
            places: of the workers in the stack.
            generators: of their dropouts.
            rates: of their steps.
        """
        count, dropout = targets.shape[1], [self._dropout[place] for place in places]
        plan = self.masks(tree_map(lambda value: value[0], inputs), count)
        if self._perceptrons is not None:
            draws = plan.draws(count, generators, dropout)
            return self._perceptrons.step(state, inputs, targets, draws, rates)
        return self._vmapped.step(state, inputs, targets, plan.draw(count, generators, dropout), rates)

    def try_out(self, index: Tensor) -> None:
        """A forward and a backward pass of these rows, without a step; what is wrong is raised.

        A model that its graph makes a perceptron of is none if it does something else than that says.
        """
        workers = self.workers[:2]
        worker, count = workers[0], len(workers)
        inputs, targets = worker.batch(index, None)
        plan, rates = self.masks(inputs, len(index)), self._dropout[:count]
        inputs = tree_map(lambda value: torch.stack([value] * count), inputs)
        targets = torch.stack([targets] * count)

        def generators() -> list[torch.Generator]:
            path = (worker.spec.seed, "stack")
            return [generator(*path, place, device=worker.device) for place in range(count)]

        state = self._vmapped.read(workers)
        masks = plan.draw(len(index), generators(), rates)
        _, losses, gradients = self._vmapped.gradients(state, inputs, targets, masks)
        ways = self._perceptrons
        if ways is None:
            return
        if not ways.takes(inputs):
            self.use_vmap()
            return
        again, draws = ways.read(workers), plan.draws(len(index), generators(), rates)
        sums, found = ways.gradients(again, inputs, targets, draws)
        expected = dict(zip(self._vmapped.names, gradients, strict=True)) | state.buffers
        pairs = [(value, expected[name]) for name, value in ways.named(found, again).items()]
        if not all(_are_alike(*pair) for pair in [(sums, losses.sum(1)), *pairs]):
            self.use_vmap()

    def masks(self, inputs: object, rows: int) -> MaskPlan:
        """Which masks a batch of one worker asks for, found out once."""
        if self._masks is None:
            self._masks = plan_masks(self._model, inputs, rows, autocast=self.workers[0].autocast())
        return self._masks


def _perceptrons(worker: Worker) -> StackedPerceptrons | None:
    """How workers like this one are trained, if their models are perceptrons."""
    chain = perceptron_of(worker)
    if chain is None:
        return None
    from hqde.training.perceptron_steps import StackedPerceptrons  # brings numba and SciPy

    return StackedPerceptrons(chain, worker)


class _Round:
    """The steps of a round of a stack."""

    def __init__(
        self,
        stack: Stack,
        orders: Sequence[Order],
        places: Sequence[int],
    ) -> None:
        self._stack, self._orders = stack, orders
        self._workers = [stack.workers[place] for place in places]
        self._places = list(places)
        pairs = list(zip(self._workers, orders, strict=True))
        self.batches = [worker.batches(order) for worker, order in pairs]
        self._dropping = [worker.dropping(order) for worker, order in pairs]
        self._augmenting = [
            generator(w.spec.seed, "worker", w.spec.worker_id, "augment", o.round_index) for w, o in pairs
        ]
        self._rates_at = [
            [worker.rate_at(order, step, max(1, len(own))) for step in range(max(1, len(own)))]
            for (worker, order), own in zip(pairs, self.batches, strict=True)
        ]
        self._steps: list[tuple[list[int], int, Tensor, Tensor | None]] = []
        self.data_s = 0.0

    def tallies(self) -> list[Tally]:
        """What each worker's steps add up to."""
        counts: list[list[int]] = [[] for _ in self._workers]
        sums: list[list[float]] = [[] for _ in self._workers]
        hits: list[list[int]] = [[] for _ in self._workers]
        for group, rows, losses, right in self._steps:
            of_rows = [0] * len(group) if right is None else right.tolist()
            for place, loss, found in zip(group, losses.tolist(), of_rows, strict=True):
                counts[place].append(rows)
                sums[place].append(loss)
                hits[place].append(found)
        classes = self._workers[0].loss == "cross_entropy"
        rates = [own[max(0, len(done) - 1)] for own, done in zip(self._rates_at, counts, strict=True)]
        return [
            Tally.of_sums(rate, count, torch.tensor(total), torch.tensor(right) if classes else None)
            for rate, count, total, right in zip(rates, counts, sums, hits, strict=True)
        ]

    def groups(self, step: int, failed: dict[int, Exception]) -> list[list[int]]:
        """Workers with a batch in this step, those of one size together."""
        sizes: dict[int, list[int]] = defaultdict(list)
        for place, own in enumerate(self.batches):
            if step < len(own) and place not in failed:
                sizes[len(own[step])].append(place)
        return list(sizes.values())

    def step(self, step: int, group: list[int], state: Stacked, failed: dict[int, Exception]) -> None:
        """One step of these workers."""
        waiting = time.perf_counter()
        inputs, targets, group = self._rows(step, group, failed)
        self.data_s += time.perf_counter() - waiting
        if not group:
            return
        index = None if len(group) == len(state.rows) else torch.tensor(group)
        own = state if index is None else state.take(index)
        try:
            self._update(step, group, own, inputs, targets)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            failed.update(dict.fromkeys(group, error))
            return
        if index is not None:
            state.put(index, own)

    def _rows(
        self, step: int, group: list[int], failed: dict[int, Exception]
    ) -> tuple[object, Tensor, list[int]]:
        """Inputs ``(w, n, …)`` and targets ``(w, n)`` of those whose rows can be read."""
        first = self._workers[0]
        if reads_side_by_side(first.examples) and not first.spec.augmentation.enabled:
            index = torch.cat([self.batches[place][step] for place in group])
            try:
                inputs, targets = first.batch(index, None)
                count = len(group)
                return (
                    tree_map(lambda v: v.view(count, -1, *v.shape[1:]), inputs),
                    targets.view(count, -1),
                    group,
                )
            except Exception:  # noqa: BLE001 - one by one it shows whose rows they are
                pass
        found = []
        for place in group:
            worker, index = self._workers[place], self.batches[place][step]
            try:
                found.append((place, worker.batch(index, self._augmenting[place])))
            except Exception as error:  # data may raise anything; the engine decides
                if is_out_of_memory(error):
                    raise
                failed[place] = error
        if not found:
            return None, torch.empty(0), []
        inputs = tree_map(lambda *rows: torch.stack(rows), *[batch[0] for _, batch in found])
        return inputs, torch.stack([batch[1] for _, batch in found]), [place for place, _ in found]

    def _update(self, step: int, group: list[int], state: Stacked, inputs: object, targets: Tensor) -> None:
        places, draws = [self._places[place] for place in group], [self._dropping[place] for place in group]
        rates = [self._rates_at[place][step] for place in group]
        sums, hits = self._stack.step(state, inputs, targets, places, draws, rates)
        self._steps.append((group, targets.shape[1], sums, hits))


def _are_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether values differ by no more than rounding, for the largest of them."""
    expected = expected.float()
    return bool((found.float() - expected).abs().max() <= 1e-3 * expected.abs().max().clamp_min(1.0))
