"""All workers of one architecture in this process, stacked and trained in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import psutil
import torch
from torch import Tensor

from hqde.aggregation import Rule
from hqde.backends.base import Failure, Outcome, StepReport, Supervisor
from hqde.backends.cores import torch_threads
from hqde.backends.lanes import Board, Lanes
from hqde.backends.local import LocalBackend
from hqde.backends.wrapping import WrappedBackend
from hqde.data import Examples, reads_side_by_side
from hqde.errors import ConfigError, HqdeError, PreconditionError
from hqde.training import Order, Stack, Worker, WorkerSpec, step_bytes

# Share of the free memory that the stacks may take.
MEMORY_SHARE = 0.5


class VectorisedBackend(WrappedBackend):
    """Workers of one architecture, their models behind each other: one operation computes a layer of all.

    Worth it where a worker's own operations are too small to fill a core, as those of an MLP are;
    convolutions of stacked workers are slower on CPUs than those of one after the other. Workers have the
    rows, dropout masks and learning rates that they have on ``local``, and batch statistics of their own.
    Results agree with those of ``local`` to rounding, and do not repeat its bits: ``tolerance``.

    A model must do with its own inputs alone: what draws from global random generators, branches on values or
    keeps state outside of its buffers is refused, or computes something else.

    Args:
        lanes: stacks side by side on CPUs; 0 takes as many as there are cores for.
        threads: torch threads of each; 0 shares the cores out.
        stacked: workers in a stack at most; 0 takes as many as the memory is enough for.

    Raises:
        ConfigError: a negative number.

    Example:
        >>> VectorisedBackend(stacked=8).name
        'vectorised'
    """

    tolerance = 1e-3
    """Largest relative difference from ``local``: of losses, and of deltas after SGD (Euclidean norm)."""

    def __init__(self, *, lanes: int = 0, threads: int = 0, stacked: int = 0) -> None:
        if stacked < 0:
            raise ConfigError(f"stacked must not be negative, got {stacked}")
        self._local = LocalBackend(lanes=lanes, threads=threads)
        super().__init__(self._local)
        self.name = "vectorised"
        self._most = stacked
        self.stacks: list[Stack] = []

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Build the workers and stack them.

        Raises:
            PreconditionError: they cannot be stacked; with the reason, and the cure.
        """
        if not reads_side_by_side(examples):
            raise PreconditionError(
                "stacked workers read rows of tensors, and these are read by code of yours; train them with "
                "the backend 'local'"
            )
        self._local.start(specs, examples)
        workers = self._local.workers
        count, lanes = len(workers), self._local.seating.lanes
        size = -(-count // lanes)
        size = min(size, self._most or size, _fitting(workers[0], lanes))
        self.stacks = [Stack(workers[first : first + size]) for first in range(0, count, size)]

    def check(self, index: Tensor, rule: Rule) -> None:
        """Run a few examples through each worker's model, and through the first stack."""
        super().check(index, rule)
        stack = self.stacks[0]
        try:
            stack.try_out(index)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            name = stack.workers[0].spec.model.name
            raise PreconditionError(
                f"model '{name}' cannot be stacked: {str(error).splitlines()[0]}; train it with the "
                "backend 'local'"
            ) from error

    def train(
        self,
        orders: Sequence[Order],
        *,
        on_step: StepReport | None = None,
        supervisor: Supervisor | None = None,  # noqa: ARG002 - nobody can be put back
    ) -> Iterator[Outcome]:
        """Carry out the orders, a stack at a time in each lane; ``on_step`` is told a few times a second."""
        tasks = []
        board = Board(on_step)
        lanes = Lanes[list[Outcome]](self._local.seating)

        def note(worker_id: int, done: int, total: int) -> None:
            lanes.go_on()
            board.steps[worker_id] = (done, total)

        for stack in self.stacks:
            ids = {worker.spec.worker_id for worker in stack.workers}
            own = [order for order in orders if order.worker_id in ids]
            if own:
                tasks.append(partial(self._outcomes, stack, own, note))
        if len(tasks) == 1:
            with torch_threads(self._local.seating.threads):
                outcomes = tasks[0]()
            board.tell()
            yield from outcomes
            return
        for outcomes in lanes.run(tasks, meanwhile=None if on_step is None else board.tell):
            yield from outcomes

    def _outcomes(self, stack: Stack, orders: Sequence[Order], note: StepReport) -> list[Outcome]:
        found: list[Outcome] = []
        for result in stack.train_round(orders, on_step=note):
            if not isinstance(result, tuple):
                found.append(result)
                continue
            order, error = result
            if isinstance(error, HqdeError):
                raise error
            found.append(Failure.of(order, error))
        return found

    def close(self) -> None:
        """Forget the workers."""
        self.stacks = []
        super().close()


def _fitting(worker: Worker, lanes: int) -> int:
    """Workers that a stack has memory for: what a step of one keeps is measured."""
    free = psutil.virtual_memory().available
    if worker.device.type == "cuda":
        free = torch.cuda.mem_get_info(worker.device)[0]
    each = step_bytes(worker) + 6 * 4 * worker.layout.size
    return max(1, int(MEMORY_SHARE * free / lanes / each))
