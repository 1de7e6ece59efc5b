"""A few steps of a run, to see how long they take."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from statistics import mean, median
from typing import Any

import psutil
import torch

from hqde.aggregation import Update
from hqde.backends import Backend, Failure, VectorisedBackend
from hqde.data import SubsetExamples
from hqde.errors import HqdeError, WorkerError
from hqde.memory import freed_memory_kept
from hqde.planning.candidates import Candidate
from hqde.rounds import Engine, Event, Experiment, RoundRecord
from hqde.rounds.members import MemberPool
from hqde.topology import RoundPlan
from hqde.training import Order, count_batches, is_out_of_memory
from hqde.weights import Weights

WARM_UP_STEPS = 2
TRIAL_S = 0.4
MEASURED_S = 1.2
LEAST_TRIALS = 3
MOST_STEPS = 200
PREDICTED_ROWS = 512
STACKED_WORKERS = 16


@dataclass(frozen=True)
class Probe:
    """What a candidate's few steps showed.

    Attributes:
        candidate: whose; with the lanes and the stacks that there was memory for.
        samples_per_s: worker-samples per second of training steps; ``None`` if it failed.
        predicted_rows_per_s: validation rows of one member per second; ``None`` without any.
        losses: of each probed worker's first steps, for comparison.
        start_s: seconds to build the workers.
        rss_bytes: memory that the process took meanwhile.
        state_bytes: of one worker's weights and what its optimizer keeps.
        problem: why it cannot be taken; empty if it can.
        note: what was changed for want of memory; empty if nothing was.
        round_s: seconds that a worker's round takes beside its steps.
    """

    candidate: Candidate
    samples_per_s: float | None
    predicted_rows_per_s: float | None = None
    losses: tuple[float, ...] = ()
    start_s: float = 0.0
    rss_bytes: int = 0
    state_bytes: int = 0
    problem: str = ""
    note: str = ""
    round_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Probe:
        """The inverse of ``to_dict``."""
        given = dict(values)
        candidate = Candidate(**given.pop("candidate"))
        return cls(candidate, losses=tuple(given.pop("losses")), **given)


@freed_memory_kept()
def probe(candidate: Candidate, experiment: Experiment) -> Probe:
    """Train a few steps the candidate's way, on as many workers as it trains at a time.

    Stacks that run out of memory back off, and what they came down to is what was tried.

    Args:
        candidate: the way.
        experiment: what is to be trained; it is not changed.
    """
    experiment = candidate.apply(experiment)
    stacks = candidate.backend == "vectorised"
    specs = experiment.worker_specs()[: STACKED_WORKERS if stacks else max(1, candidate.lanes)]
    before = psutil.Process().memory_info().rss
    backend = candidate.make_backend()
    try:
        began = time.perf_counter()
        backend.start(specs, experiment.splits.train)
        start_s = time.perf_counter() - began
        orders = probe_orders(experiment, len(specs))
        found, _ = _trained(backend, orders, WARM_UP_STEPS)  # the first time loops are compiled
        _, took = _trained(backend, orders, WARM_UP_STEPS)
        steps = min(MOST_STEPS, max(3, math.ceil(TRIAL_S / max(took / WARM_UP_STEPS, 1e-4))))
        steps = min(steps, *(_steps_left(order, experiment) for order in orders))
        rate, round_s = _speed(backend, orders, steps)
        predicted = _predicted_rows_per_s(backend, experiment, len(specs))
        state = backend.worker_states()[0]
        weights = experiment.initial_weights(0).nbytes
        tried = _came_down_to(candidate, backend)
        return Probe(
            tried,
            rate,
            predicted,
            tuple(update.loss for update in found),
            start_s,
            max(0, psutil.Process().memory_info().rss - before),
            weights + sum(tensor.nbytes for tensor in state.tensors.values()),
            note="" if tried == candidate else f"{candidate.name} ran out of memory; {tried.name} does not",
            round_s=round_s / (len(specs) if stacks else 1),
        )
    except WorkerError as error:
        return Probe(candidate, None, problem=str(error))
    except (HqdeError, RuntimeError, MemoryError) as error:
        out_of_memory = "out of memory: " if is_out_of_memory(error) else ""
        return Probe(candidate, None, problem=f"{out_of_memory}{_line(error)}")
    finally:
        backend.close()


class _Enough(Exception):
    """So many epochs have been seen."""


class _Epochs:
    """Adds up the seconds of a run's first epochs, and ends it after them."""

    def __init__(self, count: int) -> None:
        self.seconds = [0.0] * count
        self._last = 0

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:  # noqa: ARG002
        self._last = max(plan.index for plan in plans if plan.epoch <= len(self.seconds))

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        pass

    def on_event(self, event: Event) -> None:
        pass

    def on_round(self, record: RoundRecord) -> None:
        self.seconds[record.epoch - 1] += record.wall_s
        if record.round == self._last:
            raise _Enough


def epoch_seconds(candidate: Candidate, experiment: Experiment, epochs: int) -> list[float]:
    """Seconds that each of the first epochs of a run takes: steps, averages, looks at the validation rows.

    Raises:
        HqdeError: the run fails.
    """
    seen = _Epochs(epochs)
    with suppress(_Enough):
        Engine(candidate.apply(experiment), candidate.make_backend(), listener=seen).run()
    return seen.seconds


def _speed(backend: Backend, orders: Sequence[Order], steps: int) -> tuple[float, float]:
    """Worker-samples per second of steps, and the seconds that a round of these orders takes beside them.

    Short rounds and long ones take turns: what the long ones have more is steps alone. As in a run, each
    begins where the one before ended.
    """
    lengths = (min(WARM_UP_STEPS, steps // 2), steps)
    trials: dict[int, list[float]] = {length: [] for length in lengths if length}
    samples = dict.fromkeys(trials, 0)
    began = time.perf_counter()
    while len(trials[steps]) < LEAST_TRIALS or time.perf_counter() - began < MEASURED_S:
        for length, seconds in trials.items():
            updates, took = _trained(backend, orders, length)
            orders = [_next(order, update) for order, update in zip(orders, updates, strict=True)]
            seconds.append(took)
            samples[length] = sum(update.num_samples for update in updates)
    times = {length: mean(seconds) for length, seconds in trials.items()}
    short = min(times)
    more, longer = samples[steps] - samples[short], times[steps] - times[short]
    if longer <= 0:  # one step, or one too quick to tell
        return samples[steps] / times[steps], 0.0
    rate = more / longer
    return rate, max(0.0, times[short] - samples[short] / rate)


def _came_down_to(candidate: Candidate, backend: Backend) -> Candidate:
    """The candidate as its backend trains now, which may have backed off."""
    if not isinstance(backend, VectorisedBackend) or not backend.backed_off:
        return candidate
    return replace(candidate, lanes=backend.lanes, stacked=backend.at_a_time)


def probe_orders(experiment: Experiment, num_workers: int) -> list[Order]:
    """What the first workers would be told first."""
    plan, shards = experiment.plan()[0], experiment.shards(1)
    first = [worker for worker in sorted(shards) if worker < num_workers]
    return [
        Order(
            worker_id=worker,
            round_index=1,
            attempt=0,
            epoch=1,
            start=experiment.initial_weights(experiment.group_of(worker)),
            keep_buffers=False,
            fresh_optimizer=True,
            shard=shards[worker],
            first_batch=0,
            num_batches=None,
            progress=plan.progress,
        )
        for worker in first
    ]


def _trained(backend: Backend, orders: Sequence[Order], steps: int) -> tuple[list[Update], float]:
    """Updates of so many steps of each worker, by worker, and the seconds they took together."""
    began = time.perf_counter()
    told = [replace(order, num_batches=steps) for order in orders]
    outcomes = list(backend.train(told, on_step=lambda *_: None))  # runs look at steps too
    took = time.perf_counter() - began
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise WorkerError(outcome.reason, worker_id=outcome.worker_id)
    updates = [outcome for outcome in outcomes if isinstance(outcome, Update)]
    return sorted(updates, key=lambda update: update.worker_id), took


def _next(order: Order, update: Update) -> Order:
    """The order to go on where its update ended."""
    assert isinstance(update.delta, torch.Tensor)  # only Ray's are elsewhere
    reached = Weights(order.start.vector + update.delta, update.integers)
    return replace(order, start=reached, fresh_optimizer=False)


def _steps_left(order: Order, experiment: Experiment) -> int:
    return count_batches(len(order.shard), experiment.recipe_of(order.worker_id).batch_size)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _predicted_rows_per_s(backend: Backend, experiment: Experiment, num_members: int) -> float | None:
    """Rows of one member per second, where there are validation rows to look at."""
    rows = experiment.splits.validation
    if not len(rows):
        return None
    rows = SubsetExamples(rows, torch.arange(min(PREDICTED_ROWS, len(rows))))
    num_members = min(num_members, experiment.num_groups)
    groups = tuple((group * experiment.group_size,) for group in range(num_members))  # their first workers
    weights = [experiment.initial_weights(group) for group in range(num_members)]
    pool = MemberPool(replace(experiment, splits=replace(experiment.splits, validation=rows)), {})
    seconds = []
    for _ in range(1 + LEAST_TRIALS):
        began = time.perf_counter()
        pool.validate(pool.ensemble(groups, weights, {}), backend, groups)
        seconds.append(time.perf_counter() - began)
    return num_members * len(rows) / median(seconds[1:])
