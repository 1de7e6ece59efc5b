"""A backend around another one: what it does not change, it passes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from hqde.aggregation import Combination, Combined, Delta, Rule
from hqde.backends.base import Backend, Outcome, StepReport, Supervisor
from hqde.data import Examples
from hqde.ensemble import Ensemble
from hqde.monitoring import SystemMetrics
from hqde.training import Order, WorkerSpec, WorkerState
from hqde.weights import Layout, Weights


class WrappedBackend:
    """Any backend as it is; those who extend it change what they must.

    Args:
        inner: where the workers live.

    Example:
        >>> from hqde.backends import LocalBackend
        >>> WrappedBackend(LocalBackend()).name
        'local'
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Pass on."""
        self.inner.start(specs, examples)

    def check(self, index: Tensor, rule: Rule) -> None:
        """Pass on."""
        self.inner.check(index, rule)

    def layout(self, worker_id: int) -> Layout:
        """Pass on."""
        return self.inner.layout(worker_id)

    def train(
        self,
        orders: Sequence[Order],
        *,
        on_step: StepReport | None = None,
        supervisor: Supervisor | None = None,
    ) -> Iterator[Outcome]:
        """Pass on."""
        return self.inner.train(orders, on_step=on_step, supervisor=supervisor)

    def present(self) -> frozenset[int]:
        """Pass on."""
        return self.inner.present()

    def fetch(self, delta: Delta) -> Tensor:
        """Pass on."""
        return self.inner.fetch(delta)

    def combine(self, task: Combination) -> Combined:
        """Pass on."""
        return self.inner.combine(task)

    def predict_members(self, ensemble: Ensemble, examples: Examples) -> Tensor:
        """Pass on."""
        return self.inner.predict_members(ensemble, examples)

    def worker_states(self) -> Mapping[int, WorkerState]:
        """Pass on."""
        return self.inner.worker_states()

    def load_worker_states(self, states: Mapping[int, WorkerState], committed: Mapping[int, Weights]) -> None:
        """Pass on."""
        self.inner.load_worker_states(states, committed)

    def machines(self) -> Mapping[str, SystemMetrics]:
        """Pass on."""
        return self.inner.machines()

    def close(self) -> None:
        """Pass on."""
        self.inner.close()
