"""All workers in this process, side by side on its cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from hqde.aggregation import Combination, Combined, Delta, Rule, combine
from hqde.backends.base import Failure, Outcome, StepReport, Supervisor
from hqde.backends.cores import Seating, seat_workers, torch_threads
from hqde.backends.lanes import Board, Lanes
from hqde.data import Examples
from hqde.ensemble import BATCH_SIZE, Ensemble, predict_side_by_side
from hqde.errors import ConfigError, HqdeError
from hqde.monitoring import SystemMetrics
from hqde.training import Order, Turns, Worker, WorkerSpec, WorkerState
from hqde.weights import Layout, Weights

# Of a row that many more of are predicted at once, since calls take longer than products.
NUMBERS_OF_SMALL = 256


class LocalBackend:
    """Workers as plain objects of this process. Needs no Ray and no second process.

    On CPUs they train side by side, each in a thread of its own, where there are several workers and cores.
    The bits are those of one after the other, for any number of lanes. On a GPU they train in turn.

    A worker whose round runs out of memory beside others fails in that round, for it cannot be put back; from
    the next round on there are half as many at a time.

    Args:
        lanes: workers side by side; 0 takes as many as there are cores for.
        threads: torch threads of each; 0 shares the cores out. The same bits need the same number.

    Raises:
        ConfigError: a negative number.

    Example:
        >>> LocalBackend(lanes=2).name
        'local'
    """

    name = "local"

    def __init__(self, *, lanes: int = 0, threads: int = 0) -> None:
        self._lanes, self._threads = lanes, threads
        self.workers: list[Worker] = []
        self.seating = seat_workers(1, lanes=lanes, threads=threads)

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Build the workers, in order of their ids.

        Raises:
            ConfigError: several lanes are asked for on a GPU.
        """
        on_cpu = all(torch.device(spec.device).type == "cpu" for spec in specs)
        if self._lanes > 1 and not on_cpu:
            raise ConfigError(f"lanes={self._lanes}: workers on a GPU train in turn; leave lanes out")
        if on_cpu:
            self.seating = seat_workers(len(specs), lanes=self._lanes, threads=self._threads)
        else:
            self.seating = Seating(1, self._threads)
        self.workers = [Worker(spec, examples) for spec in specs]

    def check(self, index: Tensor, rule: Rule) -> None:  # noqa: ARG002 - every rule runs here
        """Run a few examples through each worker's model."""
        for worker in self.workers:
            worker.check(index)

    def layout(self, worker_id: int) -> Layout:
        """The flat layout of a worker's model."""
        return self.workers[worker_id].layout

    def train(
        self,
        orders: Sequence[Order],
        *,
        on_step: StepReport | None = None,
        supervisor: Supervisor | None = None,  # noqa: ARG002 - nobody can be put back
    ) -> Iterator[Outcome]:
        """Carry out the orders; an exception in a worker becomes a ``Failure``.

        Side by side, ``on_step`` is told of where each worker is a few times a second, and not of every step.

        Raises:
            PreconditionError: side by side, a model drew from the global random generators in some steps and
                not in others, or another thread of the process did.
        """
        if min(self.seating.lanes, len(orders)) > 1:
            yield from self._train_side_by_side(orders, on_step)
            return
        for order in orders:
            report = None if on_step is None else partial(on_step, order.worker_id)
            with torch_threads(self.seating.threads):
                outcome = self._outcome(order, report, None)
            yield outcome

    def _train_side_by_side(self, orders: Sequence[Order], on_step: StepReport | None) -> Iterator[Outcome]:
        turns, lanes, board = Turns(), Lanes[Outcome](self.seating), Board(on_step)

        def tell() -> None:
            with turns.aside():  # a listener may draw, and must not be taken for a model that does
                board.tell()

        def note(worker_id: int, done: int, total: int) -> None:
            lanes.go_on()
            board.steps[worker_id] = (done, total)

        tasks = [partial(self._outcome, order, partial(note, order.worker_id), turns) for order in orders]
        fewer = max(1, min(self.seating.lanes, len(orders)) // 2)
        short = False
        with turns:
            for outcome in lanes.run(tasks, meanwhile=None if on_step is None else tell):
                if isinstance(outcome, Failure) and outcome.kind == "memory":
                    short = True
                    told = f"{outcome.reason}; from now on {fewer} worker(s) at a time"
                    outcome = replace(outcome, reason=told)
                yield outcome
        if short:
            self.seating = replace(self.seating, lanes=fewer)

    def _outcome(
        self, order: Order, report: Callable[[int, int], None] | None, turns: Turns | None
    ) -> Outcome:
        try:
            return self.workers[order.worker_id].train_round(order, on_step=report, turns=turns)
        except HqdeError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's model may raise anything; the engine decides
            return Failure.of(order, error)

    def present(self) -> frozenset[int]:
        """All of them."""
        return frozenset(range(len(self.workers)))

    def fetch(self, delta: Delta) -> Tensor:
        """It is here already."""
        assert isinstance(delta, Tensor)
        return delta

    def combine(self, task: Combination) -> Combined:
        """Combine here and now."""
        return combine(task)

    def predict_members(self, ensemble: Ensemble, examples: Examples) -> Tensor:
        """Let the members predict, side by side where workers train so."""
        lanes, threads = min(self.seating.lanes, len(ensemble)), self.seating.threads
        shape = ensemble.schema.input_shape
        rows = BATCH_SIZE if shape is None or prod(shape) > NUMBERS_OF_SMALL else 4 * BATCH_SIZE
        if lanes > 1:
            return predict_side_by_side(ensemble, examples, lanes=lanes, threads=threads, batch_size=rows)
        with torch_threads(threads):
            return ensemble.predict_members(examples, batch_size=rows)

    def worker_states(self) -> Mapping[int, WorkerState]:
        """Every worker's state."""
        return {worker.spec.worker_id: worker.state() for worker in self.workers}

    def load_worker_states(self, states: Mapping[int, WorkerState], committed: Mapping[int, Weights]) -> None:
        """Put the workers back."""
        for worker_id, state in states.items():
            self.workers[worker_id].load_state(state, committed[worker_id])

    def machines(self) -> Mapping[str, SystemMetrics]:
        """There are no others."""
        return {}

    def close(self) -> None:
        """Forget the workers."""
        self.workers = []
