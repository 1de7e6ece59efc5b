"""A few steps of a run, to see how long they take."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from hqde.aggregation import Update
from hqde.backends import Backend, Failure, VectorisedBackend
from hqde.data import SubsetExamples
from hqde.errors import HqdeError, WorkerError
from hqde.memory import freed_memory_kept
from hqde.planning.candidates import Candidate
from hqde.rounds import Experiment
from hqde.rounds.members import MemberPool
from hqde.training import Order, count_batches, is_out_of_memory

WARM_UP_STEPS = 2
MEASURED_S = 0.6
MOST_STEPS = 200
PREDICTED_ROWS = 512
STACKED_WORKERS = 16


@dataclass(frozen=True)
class Probe:
    """What a candidate's few steps showed.

    Attributes:
        candidate: whose; with the lanes and the stacks that there was memory for.
        samples_per_s: worker-samples per second of training; ``None`` if it failed.
        predicted_rows_per_s: rows through one member per second; ``None`` without validation rows.
        losses: of each probed worker's first steps, for comparison.
        start_s: seconds to build the workers.
        rss_bytes: memory that the process took meanwhile.
        state_bytes: of one worker's weights and what its optimizer keeps.
        problem: why it cannot be taken; empty if it can.
        note: what was changed for want of memory; empty if nothing was.
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
        found, took = _trained(backend, orders, WARM_UP_STEPS)
        steps = min(MOST_STEPS, max(3, math.ceil(MEASURED_S / max(took / WARM_UP_STEPS, 1e-4))))
        steps = min(steps, *(_steps_left(order, experiment) for order in orders))
        rates = []
        for _ in range(2):  # the faster of two: whatever else runs on the machine only slows down
            again, took = _trained(backend, orders, steps)
            rates.append(sum(update.num_samples for update in again) / took)
        predicted = _predicted_rows_per_s(backend, experiment, len(specs))
        state = backend.worker_states()[0]
        weights = experiment.initial_weights(0).nbytes
        tried = _came_down_to(candidate, backend)
        return Probe(
            tried,
            max(rates),
            predicted,
            tuple(update.loss for update in found),
            start_s,
            max(0, psutil.Process().memory_info().rss - before),
            weights + sum(tensor.nbytes for tensor in state.tensors.values()),
            note="" if tried == candidate else f"{candidate.name} ran out of memory; {tried.name} does not",
        )
    except WorkerError as error:
        return Probe(candidate, None, problem=str(error))
    except (HqdeError, RuntimeError, MemoryError) as error:
        out_of_memory = "out of memory: " if is_out_of_memory(error) else ""
        return Probe(candidate, None, problem=f"{out_of_memory}{_line(error)}")
    finally:
        backend.close()


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
    outcomes = list(backend.train([replace(order, num_batches=steps) for order in orders]))
    took = time.perf_counter() - began
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise WorkerError(outcome.reason, worker_id=outcome.worker_id)
    updates = [outcome for outcome in outcomes if isinstance(outcome, Update)]
    return sorted(updates, key=lambda update: update.worker_id), took


def _steps_left(order: Order, experiment: Experiment) -> int:
    return count_batches(len(order.shard), experiment.recipe_of(order.worker_id).batch_size)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _predicted_rows_per_s(backend: Backend, experiment: Experiment, num_members: int) -> float | None:
    """Rows through one member per second, where there are validation rows to look at."""
    rows = experiment.splits.validation
    if not len(rows):
        return None
    rows = SubsetExamples(rows, torch.arange(min(PREDICTED_ROWS, len(rows))))
    num_members = min(num_members, experiment.num_groups)
    groups = tuple((group * experiment.group_size,) for group in range(num_members))  # their first workers
    weights = [experiment.initial_weights(group) for group in range(num_members)]
    ensemble = MemberPool(experiment, {}).ensemble(groups, weights, {})
    backend.predict_members(ensemble, rows)
    began = time.perf_counter()
    backend.predict_members(ensemble, rows)
    return num_members * len(rows) / (time.perf_counter() - began)
