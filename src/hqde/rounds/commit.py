"""From a group's updates to its new weights. Pure but for the backend that combines the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hqde.aggregation import (
    AggregationPolicy,
    Combination,
    Decision,
    FractionalRule,
    LearntShares,
    Mean,
    NormState,
    Rejection,
    Remembering,
    Rule,
    ServerOptimizer,
    ServerState,
    Update,
    admit,
    norm_of,
    pulled,
    rule_of,
    shares_of,
    step_columns,
    weighted_sum,
)
from hqde.backends import Backend
from hqde.errors import PreconditionError
from hqde.weights import Layout, Weights


@dataclass(frozen=True)
class HeldOut:
    """What a group's model with some weights does on the server's held-out rows.

    Attributes:
        loss: its loss; infinite where that is not finite.
        slope: the loss that it is trained with, and that one's gradient ``(p,)`` in the parameters.
    """

    loss: Callable[[Weights], float]
    slope: Callable[[Weights], tuple[float, Tensor]]


@dataclass(frozen=True)
class Memory:
    """What earlier rounds left behind for judging a group's updates.

    Attributes:
        norms: of its policy's norm bound.
        scores: reliability by worker id; empty where nothing is remembered.
    """

    norms: NormState = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """One group's end of a round.

    Attributes:
        weights, server: the group's new weights and server state; the old ones when nothing was admitted.
        num_samples: examples behind the admitted updates; 0 means the round was skipped for this group.
        rejected: updates that no rule saw, with the reason.
        left_out: updates that the rule saw and gave no weight, with the reason.
        row_weights: the weight of each row that the rule saw, by worker id, where it gives weights.
        agreements: how far each worker agreed with the majority, in [0, 1]; 0 for rejected ones. Empty where
            nothing is remembered.
        outliers: scores of the rows, by worker id and name, where somebody looked.
        norms: the norm bound's state after the round.
        skipped: why the group kept its weights; empty when it did not.
    """

    weights: Weights
    server: ServerState
    num_samples: int
    rejected: tuple[Rejection, ...]
    left_out: tuple[Rejection, ...] = ()
    row_weights: Mapping[int, float] = field(default_factory=dict)
    agreements: Mapping[int, float] = field(default_factory=dict)
    outliers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    norms: NormState = field(default_factory=dict)
    skipped: str = ""


def commit_group(
    updates: Sequence[Update],
    *,
    round_index: int,
    base: Weights,
    server_state: ServerState,
    layout: Layout,
    rule: Rule | FractionalRule,
    server: ServerOptimizer,
    backend: Backend,
    quorum: int = 1,
    policy: AggregationPolicy = AggregationPolicy(),
    memory: Memory = Memory(),
    held_out: HeldOut | None = None,
    releases_always: bool = False,
) -> Commit:
    """Admit, aggregate, step the server optimizer, and build the group's new weights.

    Shares are the engine's own sample counts. The server optimizer sees parameters only; floating buffers
    take the aggregate as it is; integer buffers take the maximum. A rejected update counts against the rule's
    f. With fewer than ``quorum`` usable updates nothing changes; with fewer than the rule needs, what
    ``policy.on_breach`` says. With ``releases_always`` the backend combines what there is, be it nothing:
    of a private group nobody may see that it stood still.

    Raises:
        PreconditionError: too few rows for the rule, or shares so unequal that f of them may hold half of the
            weight, and the policy says ``"raise"``.
    """
    admitted, refused = admit(
        updates, round_index=round_index, size=layout.size, num_integers=layout.num_integers
    )
    admitted = [update for update in admitted if update.num_samples > 0]
    admitted, screened, norms = _screen(admitted, base, backend, policy, memory, held_out)
    refused += screened
    rejected = tuple(sorted(refused, key=lambda r: r.worker_id))
    against = {r.worker_id: 0.0 for r in rejected} if policy.reliability is not None else {}
    unchanged = Commit(base, server_state, 0, rejected, agreements=against, norms=norms)
    if len(admitted) < quorum and not releases_always:
        skipped = f"{len(admitted)} of {quorum} usable updates" if admitted else "no usable update"
        return replace(unchanged, skipped=skipped)
    deployed = rule_of(rule, len(admitted) + len(rejected)).after_rejecting(len(rejected))
    deployed = deployed.for_round(round_index)
    task = Combination(
        rows=[update.delta for update in admitted],
        shares=shares_of([update.num_samples for update in admitted]) if admitted else torch.zeros(0),
        rule=_remembering(deployed, admitted, policy, memory),
        server=server,
        base=base.vector,
        state=server_state,
        num_parameters=layout.num_parameters,
    )
    without: dict[int, str] = {}
    if policy.learnt_shares is not None and held_out is not None and len(admitted) > 1:
        task, without = _with_learnt_shares(task, policy.learnt_shares, held_out, backend, base.integers)
    try:
        if admitted:
            deployed.check_bound(len(admitted))
        combined = backend.combine(task)
    except PreconditionError as error:
        if policy.on_breach == "raise":
            raise
        if policy.on_breach == "keep_previous":
            unchanged = _carried_on(unchanged, task, base)
        return replace(unchanged, skipped=str(error))
    ids, decision = [update.worker_id for update in admitted], combined.decision
    integers = torch.stack([update.integers for update in admitted] or [base.integers]).amax(dim=0)
    return Commit(
        weights=Weights(combined.vector, integers),
        server=combined.state,
        num_samples=sum(update.num_samples for update in admitted),
        rejected=rejected,
        left_out=tuple(
            Rejection(ids[row], reason) for row, reason in sorted((without | decision.rejected).items())
        ),
        row_weights=_by_worker(ids, decision.weights),
        agreements=_by_worker(ids, decision.agreement) | against,
        outliers=_outliers_of(decision, ids),
        norms=norms,
    )


def average_groups(commits: Sequence[Commit], *, equally: bool = False) -> Weights:
    """The average of all groups' weights, by their samples or ``equally`` (hierarchical FedAvg).

    Taken around the first group's weights, so that the rule sees differences, never raw weights.
    """
    centre = commits[0].weights.vector
    samples = [commit.num_samples for commit in commits]
    if equally or not sum(samples):
        samples = [1] * len(commits)
    rows = torch.stack([commit.weights.vector - centre for commit in commits])
    mean = Mean()(rows, shares_of(samples)).value
    integers = torch.stack([commit.weights.integers for commit in commits]).amax(dim=0)
    return Weights(centre + mean, integers)


def couple_groups(commits: Sequence[Commit], pull: float, *, equally: bool = False) -> list[Commit]:
    """Draw every group's weights to the average of all: ``x_g ← x_g + pull · (average − x_g)``.

    Args:
        commits: of all groups, of one architecture.
        pull: from 0 to 1, where all groups end with the average.
        equally: groups count alike, not by their samples, which tell who took part.

    Example:
        >>> none = torch.zeros(0, dtype=torch.int64)
        >>> ends = [Commit(Weights(torch.tensor([x]), none), {}, 8, ()) for x in (0.0, 4.0)]
        >>> [float(commit.weights.vector) for commit in couple_groups(ends, 0.5)]
        [1.0, 3.0]
    """
    common = average_groups(commits, equally=equally)
    if pull == 1.0:
        return [replace(commit, weights=common) for commit in commits]
    return [
        replace(
            commit,
            weights=replace(commit.weights, vector=pulled(commit.weights.vector, common.vector, pull)),
        )
        for commit in commits
    ]


def _screen(
    admitted: list[Update],
    base: Weights,
    backend: Backend,
    policy: AggregationPolicy,
    memory: Memory,
    held_out: HeldOut | None,
) -> tuple[list[Update], list[Rejection], NormState]:
    """The updates that pass the optional checks, those that do not, and the norm bound's next state."""
    reasons: dict[int, str] = {}
    norms = memory.norms
    if policy.norm_bound is not None:
        lengths = torch.tensor([norm_of(update.delta) for update in admitted], dtype=torch.float64)
        reasons, norms = policy.norm_bound.judge(lengths, norms or policy.norm_bound.init())
    if policy.held_out is not None and held_out is not None and admitted:
        losses = [
            held_out.loss(Weights(base.vector + backend.fetch(update.delta), update.integers))
            for update in admitted
        ]
        reasons = policy.held_out.judge(held_out.loss(base), losses) | reasons
    kept = [update for row, update in enumerate(admitted) if row not in reasons]
    return kept, [Rejection(admitted[row].worker_id, reason) for row, reason in reasons.items()], norms


def _with_learnt_shares(
    task: Combination, learnt: LearntShares, held_out: HeldOut, backend: Backend, integers: Tensor
) -> tuple[Combination, dict[int, str]]:
    """The shares whose mean the server's step makes the best weights of; and why some are 0, by position."""
    rows = [backend.fetch(row) for row in task.rows]

    def slope(shares: Tensor) -> tuple[float, Tensor]:
        mean = weighted_sum(rows, shares.tolist())
        vector, _ = step_columns(mean, task.base, task.server, task.state, task.num_parameters)
        loss, gradient = held_out.slope(Weights(vector, integers))
        # For a server whose steps are not linear in what it is given, the direction alone.
        return loss, torch.stack([row[: len(gradient)].double() @ gradient for row in rows])

    shares, without = learnt.learn(task.shares, slope)
    return replace(task, shares=shares), without


def _remembering(rule: Rule, admitted: Sequence[Update], policy: AggregationPolicy, memory: Memory) -> Rule:
    if policy.reliability is None:
        return rule
    scores = tuple(memory.scores[update.worker_id] for update in admitted)
    return Remembering(rule, scores, policy.reliability, policy.use)


def _carried_on(unchanged: Commit, task: Combination, base: Weights) -> Commit:
    """A step of the server optimizer with a delta of zero."""
    cut = task.num_parameters
    step, state = task.server.update(torch.zeros_like(base.vector[:cut]), task.state)
    vector: Tensor = torch.cat([base.vector[:cut] + step, base.vector[cut:]])
    return replace(unchanged, weights=Weights(vector, base.integers), server=state)


def _by_worker(ids: Sequence[int], values: Tensor | None) -> dict[int, float]:
    return {} if values is None else dict(zip(ids, values.tolist(), strict=True))


def _outliers_of(decision: Decision, ids: Sequence[int]) -> dict[int, dict[str, float]]:
    scores = {name: _by_worker(ids, values) for name, values in decision.outliers.items()}
    return {worker: {name: scores[name][worker] for name in scores} for worker in ids}
