"""Where workers live: the protocol between the engine and the machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from hqde.aggregation import Combination, Combined, Delta, Rule, Update
from hqde.data import Examples
from hqde.ensemble import Ensemble
from hqde.monitoring import SystemMetrics
from hqde.training import Order, WorkerSpec, WorkerState, is_out_of_memory
from hqde.weights import Layout, Weights


@dataclass(frozen=True)
class Failure:
    """A worker that could not finish its round. A value, not an exception: the engine decides what follows.

    Attributes:
        worker_id, round_index, attempt: of the order that failed.
        reason: one sentence.
        kind: ``raised`` (the model or the data raised), ``died`` (its process or machine is gone), ``late``
            (past its deadline), ``memory`` (out of memory).
    """

    worker_id: int
    round_index: int
    attempt: int
    reason: str
    kind: Literal["raised", "died", "late", "memory"] = "raised"

    @classmethod
    def of(cls, order: Order, error: Exception) -> Failure:
        """An order in which the model or the data raised, or that there was no memory for."""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        kind: Literal["raised", "memory"] = "memory" if is_out_of_memory(error) else "raised"
        return cls(order.worker_id, order.round_index, order.attempt, reason, kind)


Outcome = Update | Failure
StepReport = Callable[[int, int, int], None]  # worker id, batches done, batches in the round


class Supervisor(Protocol):
    """What the engine lets a backend decide while a round is under way: patience, and second attempts."""

    def patience_s(self, order: Order) -> float | None:
        """Seconds after its start at which an order counts as late; ``None`` while nothing is known."""
        ...

    def on_arrival(self, order: Order, seconds: float) -> None:
        """An update for ``order`` came in ``seconds`` after the order began."""
        ...

    def on_repair(self, round_index: int, reason: str) -> None:
        """Copies that were lost or damaged have been made anew."""
        ...

    def on_back_off(self, round_index: int, reason: str) -> None:
        """There was not enough memory, and fewer workers train at a time from now on."""
        ...

    def retries(self, failure: Failure) -> bool:
        """Whether the worker is put back to where its round began and given the order again."""
        ...


class Backend(Protocol):
    """Runs workers. Call order: ``start``, any number of the others, ``close``.

    The same specs, orders and states must give the same updates on every backend that promises it: nothing
    random may depend on where, when or next to whom a worker runs.
    """

    name: str

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Build the workers; ``specs[i].worker_id == i``. The training examples are shared by all."""
        ...

    def check(self, index: Tensor, rule: Rule) -> None:
        """Run a few training examples through every worker's model, and look whether the rule can be run.

        Raises:
            PreconditionError: a model's output does not fit the task, or the rule not how sums are spread.
        """
        ...

    def layout(self, worker_id: int) -> Layout:
        """The flat layout of a worker's model."""
        ...

    def train(
        self,
        orders: Sequence[Order],
        *,
        on_step: StepReport | None = None,
        supervisor: Supervisor | None = None,
    ) -> Iterator[Outcome]:
        """Carry out one order per worker and yield one outcome for each, in any order.

        A backend that can put a worker back to where its round began asks the supervisor what to do with a
        late or failed one, and yields the outcome of the last attempt; without a supervisor every order is
        tried once, for as long as it takes.
        """
        ...

    def present(self) -> frozenset[int]:
        """Workers that can be given orders now. Others may join, and these may leave, between rounds.

        Raises:
            QuorumError: fewer than the run needs.
        """
        ...

    def fetch(self, delta: Delta) -> Tensor:
        """A delta that ``train`` handed out, ``(d,)``, in this process."""
        ...

    def combine(self, task: Combination) -> Combined:
        """Make new weights of a group's admitted rows; the same bits as ``aggregation.combine``."""
        ...

    def predict_members(self, ensemble: Ensemble, examples: Examples) -> Tensor:
        """The members' predictions: ``(m, n, c)`` probabilities, or ``(m, n, 2)`` means and variances."""
        ...

    def worker_states(self) -> Mapping[int, WorkerState]:
        """Every worker's state between rounds, for a checkpoint."""
        ...

    def load_worker_states(self, states: Mapping[int, WorkerState], committed: Mapping[int, Weights]) -> None:
        """Put workers back to ``states`` over the weights committed for them, by worker id."""
        ...

    def machines(self) -> Mapping[str, SystemMetrics]:
        """The newest look at each machine but this one, by its name, where one has come in; without waiting.

        Called from a thread of its own, while anything else may be going on.
        """
        ...

    def close(self) -> None:
        """Let go of everything; may be called twice."""
        ...
