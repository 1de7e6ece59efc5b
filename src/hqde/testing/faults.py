"""Faults on order: a backend that misbehaves exactly where a test says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hqde.aggregation import Update
from hqde.backends import Backend, Failure, Outcome, StepReport, Supervisor, WrappedBackend
from hqde.training import Order


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


class FaultyBackend(WrappedBackend):
    """Any backend, with faults. ``injected`` counts those that really happened, by kind.

    Example:
        >>> from hqde.backends import LocalBackend
        >>> FaultyBackend(LocalBackend(), (Fault(0, 1, "nan_loss"),)).injected
        Counter()
    """

    def __init__(self, inner: Backend, faults: tuple[Fault, ...]) -> None:
        super().__init__(inner)
        self.faults = faults
        self.injected: Counter[str] = Counter()

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
