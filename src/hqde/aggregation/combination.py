"""From a group's admitted rows to its new weights: the part of a commit that a backend may spread out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.aggregation.rule import Decision, Rule
from hqde.aggregation.server import ServerOptimizer, ServerState
from hqde.aggregation.update import Delta


@dataclass(frozen=True)
class Combination:
    """One group's rows, and what is to be made of them.

    Attributes:
        rows: n admitted deltas ``(d,)``, ordered by worker id.
        shares: ``(n,)`` float64, summing to 1.
        rule: from rows to one delta.
        server: from the delta to a step.
        base: ``(d,)`` the group's weights before the round.
        state: of the server optimizer.
        num_parameters: length of the part of ``d`` that the server optimizer sees; floating buffers follow it
            and take the delta as it is.
    """

    rows: Sequence[Delta]
    shares: Tensor
    rule: Rule
    server: ServerOptimizer
    base: Tensor
    state: ServerState
    num_parameters: int


@dataclass(frozen=True)
class Combined:
    """What a combination comes to: new weights ``(d,)``, the next server state, and the rule's decision."""

    vector: Tensor
    state: ServerState
    decision: Decision


def combine(task: Combination) -> Combined:
    """Carry a combination out in this process, on rows that are here.

    Raises:
        PreconditionError: rows and shares do not fit each other, or the rule's own condition is not met.

    Example:
        >>> from hqde.aggregation import FedAvg, Mean
        >>> rows, shares = [torch.tensor([2.0, 4.0])], torch.tensor([1.0])
        >>> combine(Combination(rows, shares, Mean(), FedAvg(0.5), torch.ones(2), {}, 1)).vector
        tensor([2., 5.])
    """
    rows = [row for row in task.rows if isinstance(row, Tensor)]
    aggregate = task.rule(rows, task.shares)
    vector, state = step_columns(aggregate.value, task.base, task.server, task.state, task.num_parameters)
    return Combined(vector, state, aggregate.decision)


def step_columns(
    value: Tensor, base: Tensor, server: ServerOptimizer, state: ServerState, num_parameters: int
) -> tuple[Tensor, ServerState]:
    """New weights and server state of some columns, the first ``num_parameters`` of them parameters."""
    cut = max(0, min(num_parameters, len(value)))
    step, state = server.update(value[:cut], state)
    return torch.cat([base[:cut] + step, base[cut:] + value[cut:]]), state
