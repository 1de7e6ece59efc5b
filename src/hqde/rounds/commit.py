"""From a group's updates to its new weights. Pure but for the backend that combines the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hqde.aggregation import (
    Combination,
    Decision,
    Mean,
    Rejection,
    Rule,
    ServerOptimizer,
    ServerState,
    Update,
    admit,
    shares_of,
)
from hqde.backends import Backend
from hqde.weights import Layout, Weights


@dataclass(frozen=True)
class Commit:
    """One group's end of a round.

    Attributes:
        weights, server: the group's new weights and server state; the old ones when nothing was admitted.
        num_samples: examples behind the admitted updates; 0 means the round was skipped for this group.
        rejected: updates refused, by admission or by the rule.
        skipped: why the group kept its weights; empty when it did not.
    """

    weights: Weights
    server: ServerState
    num_samples: int
    rejected: tuple[Rejection, ...]
    skipped: str = ""


def commit_group(
    updates: Sequence[Update],
    *,
    round_index: int,
    base: Weights,
    server_state: ServerState,
    layout: Layout,
    rule: Rule,
    server: ServerOptimizer,
    backend: Backend,
    quorum: int = 1,
) -> Commit:
    """Admit, aggregate, step the server optimizer, and build the group's new weights.

    Shares are the engine's own sample counts. The server optimizer sees parameters only; floating buffers
    take the aggregate as it is; integer buffers take the maximum. With fewer than ``quorum`` usable updates
    nothing changes.
    """
    admitted, refused = admit(
        updates, round_index=round_index, size=layout.size, num_integers=layout.num_integers
    )
    admitted = [update for update in admitted if update.num_samples > 0]
    if len(admitted) < quorum:
        skipped = f"{len(admitted)} of {quorum} usable updates" if admitted else "no usable update"
        return Commit(base, server_state, 0, tuple(refused), skipped)
    samples = [update.num_samples for update in admitted]
    combined = backend.combine(
        Combination(
            rows=[update.delta for update in admitted],
            shares=shares_of(samples),
            rule=rule,
            server=server,
            base=base.vector,
            state=server_state,
            num_parameters=layout.num_parameters,
        )
    )
    refused += _refused_by_rule(combined.decision, admitted)
    integers = torch.stack([update.integers for update in admitted]).amax(dim=0)
    return Commit(Weights(combined.vector, integers), combined.state, sum(samples), tuple(refused))


def average_groups(commits: Sequence[Commit]) -> Weights:
    """The sample-weighted average of all groups' weights (hierarchical FedAvg).

    Taken around the first group's weights, so that the rule sees differences, never raw weights.
    """
    centre = commits[0].weights.vector
    samples = [commit.num_samples for commit in commits]
    if not sum(samples):
        samples = [1] * len(commits)
    rows = torch.stack([commit.weights.vector - centre for commit in commits])
    mean = Mean()(rows, shares_of(samples)).value
    integers = torch.stack([commit.weights.integers for commit in commits]).amax(dim=0)
    return Weights(centre + mean, integers)


def _refused_by_rule(decision: Decision, admitted: Sequence[Update]) -> list[Rejection]:
    return [Rejection(admitted[row].worker_id, reason) for row, reason in decision.rejected.items()]
