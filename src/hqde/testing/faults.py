"""Faults on order: a backend that misbehaves exactly where a test says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from hqde.aggregation import Combination, Combined, Delta, Rule, Update
from hqde.backends import Backend, Failure, Outcome, StepReport, Supervisor
from hqde.data import Examples
from hqde.ensemble import Ensemble
from hqde.training import Order, WorkerSpec, WorkerState
from hqde.weights import Layout, Weights


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        worker_id: whose update.
        round_index: when.
        kind: ``nan_loss`` (the training loss is NaN), ``nan_delta`` (one element of the delta is NaN),
            ``failure`` (the worker hands in nothing), ``stale`` (the update is tagged with the round before),
            ``duplicate`` (it comes twice), ``interrupt`` (the user presses Ctrl-C when the update is due).
    """

    worker_id: int
    round_index: int
    kind: Literal["nan_loss", "nan_delta", "failure", "stale", "duplicate", "interrupt"]


@dataclass
class FaultyBackend:
    """Any backend, with faults. ``injected`` counts those that really happened, by kind.

    Example:
        >>> from hqde.backends import LocalBackend
        >>> FaultyBackend(LocalBackend(), (Fault(0, 1, "nan_loss"),)).injected
        Counter()
    """

    inner: Backend
    faults: tuple[Fault, ...]
    injected: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The inner backend's."""
        return self.inner.name

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
        """Pass on, with the faults that are due."""
        due = {(fault.worker_id, fault.round_index): fault for fault in self.faults}
        for outcome in self.inner.train(orders, on_step=on_step, supervisor=supervisor):
            fault = due.get((outcome.worker_id, outcome.round_index))
            if fault is None or not isinstance(outcome, Update):
                yield outcome
                continue
            self.injected[fault.kind] += 1
            yield from _spoil(replace(outcome, delta=self.inner.fetch(outcome.delta).clone()), fault)

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

    def close(self) -> None:
        """Pass on."""
        self.inner.close()


def _spoil(update: Update, fault: Fault) -> Iterator[Outcome]:
    if fault.kind == "interrupt":
        raise KeyboardInterrupt
    if fault.kind == "failure":
        yield Failure(update.worker_id, update.round_index, update.attempt, "injected failure")
    elif fault.kind == "nan_loss":
        yield replace(update, loss=float("nan"))
    elif fault.kind == "nan_delta":
        assert isinstance(update.delta, Tensor)
        update.delta[len(update.delta) // 2] = torch.nan
        yield update
    elif fault.kind == "stale":
        yield replace(update, round_index=update.round_index - 1)
    else:
        yield update
        yield update
