"""All workers in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from hqde.aggregation import Combination, Combined, Delta, Rule, combine
from hqde.backends.base import Failure, Outcome, StepReport, Supervisor
from hqde.data import Examples
from hqde.ensemble import Ensemble
from hqde.errors import HqdeError
from hqde.monitoring import SystemMetrics
from hqde.training import Order, Worker, WorkerSpec, WorkerState
from hqde.weights import Layout, Weights


class LocalBackend:
    """Workers as plain objects of this process, trained in turn with all its threads.

    Needs no Ray and no second process; the default on one device.
    """

    name = "local"

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Build the workers, in order of their ids."""
        self._workers = [Worker(spec, examples) for spec in specs]

    def check(self, index: Tensor, rule: Rule) -> None:  # noqa: ARG002 - every rule runs here
        """Run a few examples through each worker's model."""
        for worker in self._workers:
            worker.check(index)

    def layout(self, worker_id: int) -> Layout:
        """The flat layout of a worker's model."""
        return self._workers[worker_id].layout

    def train(
        self,
        orders: Sequence[Order],
        *,
        on_step: StepReport | None = None,
        supervisor: Supervisor | None = None,  # noqa: ARG002 - nobody can be put back
    ) -> Iterator[Outcome]:
        """Carry out the orders one after the other; an exception in a worker becomes a ``Failure``."""
        for order in orders:
            report = None if on_step is None else partial(on_step, order.worker_id)
            try:
                yield self._workers[order.worker_id].train_round(order, on_step=report)
            except HqdeError:
                raise
            except Exception as error:  # noqa: BLE001 - the user's model may raise anything; the engine decides
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                yield Failure(order.worker_id, order.round_index, order.attempt, reason)

    def present(self) -> frozenset[int]:
        """All of them."""
        return frozenset(range(len(self._workers)))

    def fetch(self, delta: Delta) -> Tensor:
        """It is here already."""
        assert isinstance(delta, Tensor)
        return delta

    def combine(self, task: Combination) -> Combined:
        """Combine here and now."""
        return combine(task)

    def predict_members(self, ensemble: Ensemble, examples: Examples) -> Tensor:
        """Let the members predict one after the other."""
        return ensemble.predict_members(examples)

    def worker_states(self) -> Mapping[int, WorkerState]:
        """Every worker's state."""
        return {worker.spec.worker_id: worker.state() for worker in self._workers}

    def load_worker_states(self, states: Mapping[int, WorkerState], committed: Mapping[int, Weights]) -> None:
        """Put the workers back."""
        for worker_id, state in states.items():
            self._workers[worker_id].load_state(state, committed[worker_id])

    def machines(self) -> Mapping[str, SystemMetrics]:
        """There are no others."""
        return {}

    def close(self) -> None:
        """Forget the workers."""
        self._workers = []
