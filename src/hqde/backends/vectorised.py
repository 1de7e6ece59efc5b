"""All workers of one architecture in this process, stacked and trained in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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
from hqde.errors import ConfigError, HqdeError, OutOfMemoryError, PreconditionError
from hqde.training import Order, Stack, Worker, WorkerSpec, is_out_of_memory, step_bytes

# Share of the free memory that the stacks may take.
MEMORY_SHARE = 0.5


@dataclass
class _Pass:
    """What became of a stack's orders.

    Attributes:
        left: those not carried out yet.
        outcomes: of the others.
        too_many: workers that there was no memory for at a time; 0 if there was for all.
        problem: what was said then.
    """

    left: list[Order]
    outcomes: list[Outcome] = field(default_factory=list)
    too_many: int = 0
    problem: str = ""


class VectorisedBackend(WrappedBackend):
    """Workers of one architecture, their models behind each other: one operation computes a layer of all.

    Worth it where a worker's own operations are too small to fill a core, as those of an MLP are;
    convolutions of stacked workers are slower on CPUs than those of one after the other. Workers have the
    rows, dropout masks and learning rates that they have on ``local``, and batch statistics of their own.
    Results agree with those of ``local`` to rounding, and do not repeat its bits: ``tolerance``.

    A model must do with its own inputs alone: what draws from global random generators, branches on values or
    keeps state outside of its buffers is refused, or computes something else.

    Where a step runs out of memory, half as many workers are trained at a time from then on, down to one in
    each lane, and then in half as many lanes. Orders that there was no memory for are carried out again from
    their starts, and the supervisor is told.

    Args:
        lanes: stacks side by side on CPUs; 0 takes as many as there are cores for.
        threads: torch threads of each; 0 shares the cores out.
        stacked: workers in a stack at most; 0 takes as many as the memory is enough for.

    Attributes:
        at_a_time: workers of a stack that are trained in one pass, at most; known after ``start``.
        backed_off: whether they are fewer than at the start, or the lanes are, for want of memory.

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
        self.at_a_time = stacked
        self.backed_off = False

    @property
    def lanes(self) -> int:
        """Stacks side by side."""
        return self._local.seating.lanes

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Build the workers and stack them.

        Raises:
            PreconditionError: they cannot be stacked; with the reason, and the cure.
            OutOfMemoryError: there is no memory for a step of one.
        """
        if not reads_side_by_side(examples):
            raise PreconditionError(
                "stacked workers read rows of tensors, and these are read by code of yours; train them with "
                "the backend 'local'"
            )
        self._local.start(specs, examples)
        workers = self._local.workers
        count = len(workers)
        size = -(-count // self.lanes)
        size = min(size, self._most or size, _fitting(workers[0], self.lanes))
        self.at_a_time, self.backed_off = size, False
        self.stacks = [Stack(workers[first : first + size]) for first in range(0, count, size)]

    def check(self, index: Tensor, rule: Rule) -> None:
        """Run a few examples through each worker's model, and through the first stack."""
        super().check(index, rule)
        stack = self.stacks[0]
        try:
            with _said_of(stack.workers[0]):
                stack.try_out(index)
            if not stack.is_perceptron:
                for other in self.stacks:
                    other.use_vmap()
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
        supervisor: Supervisor | None = None,
    ) -> Iterator[Outcome]:
        """Carry out the orders, a stack at a time in each lane; ``on_step`` is told a few times a second.

        Raises:
            OutOfMemoryError: there is no memory for a step of one worker alone.
        """
        left, first_problem = list(orders), ""
        while left:
            short: list[_Pass] = []
            with self._product_threads():
                for done in self._passes(left, on_step):
                    yield from done.outcomes
                    if done.left:
                        short.append(done)
            left = [order for done in short for order in done.left]
            if left:
                worst = max(short, key=lambda done: done.too_many)
                first_problem = first_problem or worst.problem
                self._back_off(worst)
        if first_problem and supervisor is not None:
            in_lanes = f" in each of {self.lanes} lanes" if self.lanes > 1 else ""
            told = f"{first_problem}; from now on {self.at_a_time} worker(s) at a time{in_lanes}"
            supervisor.on_back_off(orders[0].round_index, told)

    def _product_threads(self) -> AbstractContextManager[None]:
        """Of each lane, where stacks of perceptrons multiply matrices in compiled loops."""
        if not any(stack.is_perceptron for stack in self.stacks):
            return nullcontext()
        from hqde.compiling import product_threads  # numba takes half a second to import

        # More lanes than one would wait for each other's threads.
        alone = self.lanes == 1
        return product_threads(self._local.seating.threads or torch.get_num_threads() if alone else 1)

    def _passes(self, orders: Sequence[Order], on_step: StepReport | None) -> Iterator[_Pass]:
        """Each stack's orders, carried out as far as there is memory."""
        tasks = []
        board = Board(on_step)
        lanes = Lanes[_Pass](self._local.seating)

        def note(worker_id: int, done: int, total: int) -> None:
            lanes.go_on()
            board.steps[worker_id] = (done, total)

        for stack in self.stacks:
            ids = {worker.spec.worker_id for worker in stack.workers}
            own = [order for order in orders if order.worker_id in ids]
            if own:
                tasks.append(partial(self._pass, stack, own, note))
        if len(tasks) == 1:
            with torch_threads(self._local.seating.threads):
                done = tasks[0]()
            board.tell()
            yield done
            return
        yield from lanes.run(tasks, meanwhile=None if on_step is None else board.tell)

    def _pass(self, stack: Stack, orders: Sequence[Order], note: StepReport) -> _Pass:
        done = _Pass(left=sorted(orders, key=lambda order: order.worker_id))
        while done.left:
            some = done.left[: self.at_a_time]
            try:
                results = stack.train_round(some, on_step=note)
            except OutOfMemoryError as error:
                # The sentence alone: the error itself would keep the step's tensors.
                done.too_many, done.problem = len(some), str(error)
                break
            done.left = done.left[len(some) :]
            for result in results:
                if not isinstance(result, tuple):
                    done.outcomes.append(result)
                    continue
                order, problem = result
                if isinstance(problem, HqdeError):
                    raise problem
                done.outcomes.append(Failure.of(order, problem))
        return done

    def _back_off(self, done: _Pass) -> None:
        """Half as many workers at a time, or half as many lanes.

        Raises:
            OutOfMemoryError: it was one worker alone.
        """
        if done.too_many > 1:
            self.at_a_time = -(-done.too_many // 2)
        elif self.lanes > 1:
            self._local.seating = replace(self._local.seating, lanes=self.lanes // 2)
        else:
            raise _no_room(self._local.workers[done.left[0].worker_id], done.problem)
        self.backed_off = True

    def close(self) -> None:
        """Forget the workers."""
        self.stacks = []
        super().close()


def _fitting(worker: Worker, lanes: int) -> int:
    """Workers that a stack has memory for: what a step of one keeps is measured."""
    with _said_of(worker):
        each = step_bytes(worker) + 6 * 4 * worker.layout.size
    return max(1, int(MEMORY_SHARE * _free_bytes(worker.device) / lanes / each))


def _free_bytes(device: torch.device) -> int:
    """Of the GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@contextmanager
def _said_of(worker: Worker) -> Iterator[None]:
    """Where running out of memory is the end, and said with the cure."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        line = str(error).splitlines()[0]
        raise _no_room(worker, f"the first rows ran out of memory ({line})") from error


def _no_room(worker: Worker, problem: str) -> OutOfMemoryError:
    recipe, free = worker.spec.recipe, _free_bytes(worker.device) / 2**20
    cures = [f"lower training.batch_size (it is {recipe.batch_size})", "take a smaller model"]
    if recipe.precision == "fp32":
        cures.insert(1, "set training.precision to bf16-mixed")
    return OutOfMemoryError(
        f"{problem}, and there is nothing smaller to try, with {free:,.0f} MiB free on {worker.device}; "
        f"{', '.join(cures[:-1])} or {cures[-1]}"
    )
