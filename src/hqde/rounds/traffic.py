"""How a round's weights and deltas travel: encoded or as they are, and how many bytes that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from hqde.aggregation import Update
from hqde.backends import Outcome
from hqde.compression import Compression, Downlink, Uplink, decode, dense_ranges, with_feedback
from hqde.rounds.commit import Commit
from hqde.rounds.state import RunState
from hqde.seeding import generator
from hqde.topology import RoundPlan
from hqde.weights import Layout, Weights


@dataclass(frozen=True)
class Broadcast:
    """What a group's workers will hold.

    Attributes:
        weights: the start of their next round.
        owed: what the packet left out of the group's new weights; ``None`` when it left out nothing.
        downlink: how those get there who hold the start of the round before; ``None`` sends all of it.
    """

    weights: Weights
    owed: Tensor | None
    downlink: Downlink | None


def uplink_of(compression: Compression, plan: RoundPlan, group: Sequence[int], *, fresh: bool) -> Uplink | None:
    """How a group's workers encode their deltas in a round; ``None`` when they do not, or send none."""
    codec = compression.codec_at(plan.index, plan.progress[0]) if travels(plan, group) else None
    if codec is None:
        return None
    return Uplink(codec, compression.feedback, fresh, compression.smallest)


def broadcast(
    commit: Commit,
    compression: Compression,
    plan: RoundPlan,
    group: Sequence[int],
    *,
    base: Weights,
    owed: Tensor | None,
    layout: Layout,
    seed: int,
) -> Broadcast:
    """From what a group has committed to what its workers are sent.

    The weights that count from here on are those that the workers hold. After the last round nothing is sent:
    the group keeps what it has, and what is owed is paid.
    """
    last = plan.progress[1] == 1.0
    codec = None
    if compression.downlink and not last and travels(plan, group):
        codec = compression.codec_at(plan.index, plan.progress[0])
    if codec is None:
        vector = commit.weights.vector if owed is None else commit.weights.vector + owed
        return Broadcast(replace(commit.weights, vector=vector), None, None)
    if not commit.num_samples:
        return Broadcast(commit.weights, owed, None)
    step = commit.weights.vector - base.vector
    dense = dense_ranges(layout, smallest=compression.smallest)
    if compression.feedback:
        packet, decoded, owed = with_feedback(codec, step, owed, dense=dense)
    else:
        draws = generator(seed, "group", group[0], "encode", plan.index)
        packet, owed = codec.encode(step, dense=dense, generator=draws), None
        decoded = decode(packet)
    weights = Weights(base.vector + decoded, commit.weights.integers)
    return Broadcast(weights, owed, Downlink(packet, plan.index))


def broadcast_all(
    commits: Sequence[Commit],
    compression: Compression,
    plan: RoundPlan,
    state: RunState,
    layouts: Sequence[Layout],
    *,
    seed: int,
) -> list[Broadcast]:
    """``broadcast`` for every group of a round that began in ``state``."""
    return [
        broadcast(
            commit,
            compression,
            plan,
            group,
            base=state.committed[index],
            owed=state.owed.get(index),
            layout=layouts[index],
            seed=seed,
        )
        for index, (group, commit) in enumerate(zip(plan.groups, commits, strict=True))
    ]


def travels(plan: RoundPlan, group: Sequence[int]) -> bool:
    """Whether the group's deltas leave their worker: one alone in its group sends nothing."""
    return len(group) > 1 or plan.scope == "global"


def count_bytes(plan: RoundPlan, outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Bytes that the workers who handed in sent and were given, and the same had nothing been encoded."""
    sent = dense = 0
    travelling = {worker for group in plan.groups if travels(plan, group) for worker in group}
    for update in outcomes:
        if isinstance(update, Update) and update.worker_id in travelling:
            sent += update.sent_bytes + update.received_bytes
            dense += 2 * (update.delta.shape[0] * update.delta.dtype.itemsize + update.integers.nbytes)
    return sent, dense


def downlinks(
    plan: RoundPlan, broadcasts: Sequence[Broadcast], outcomes: Sequence[Outcome]
) -> Mapping[int, Downlink]:
    """The packets by worker, for those who hold what they are added to: who has just handed in an update."""
    present = {outcome.worker_id for outcome in outcomes if isinstance(outcome, Update)}
    return {
        worker: each.downlink
        for group, each in zip(plan.groups, broadcasts, strict=True)
        for worker in group
        if each.downlink is not None and worker in present
    }
