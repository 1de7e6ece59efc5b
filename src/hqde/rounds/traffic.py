"""How a round's weights and deltas travel: encoded or as they are, and how many bytes that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hqde.aggregation import Update
from hqde.backends import Outcome
from hqde.compression import (
    Downlink,
    EntropyCodec,
    PackedCodec,
    Uplink,
    decode,
    dense_ranges,
    encode_step,
)
from hqde.rounds.commit import Commit
from hqde.rounds.experiment import Experiment
from hqde.rounds.state import RunState, paid
from hqde.seeding import generator
from hqde.topology import RoundPlan
from hqde.weights import Layout, Weights

# A group's first weights are sent with so many bits at least: at one or two, training starts from others than
# were drawn, and ends lower (docs/compression.md).
FIRST_BITS = 4


@dataclass(frozen=True)
class Broadcast:
    """What a group's workers will hold.

    Attributes:
        weights: the start of their next round.
        owed: what the packet left out of the group's new weights; ``None`` when it left out nothing.
        downlink: how those get there who hold the start of the round before; ``None`` sends all of it.
    """

    weights: Weights
    owed: Tensor | None = None
    downlink: Downlink | None = None


class Traffic:
    """Encodes what an experiment's groups send down, and says how their workers encode what they send up.

    Args:
        experiment: its compression, and its seed.
        layout_of: the layout of a worker's model.
    """

    def __init__(self, experiment: Experiment, layout_of: Callable[[int], Layout]) -> None:
        self._compression = experiment.compression
        self._seed = experiment.seed
        self._layout_of = layout_of

    def uplink(self, plan: RoundPlan, group: Sequence[int], *, fresh: bool) -> Uplink | None:
        """How a group's workers encode their deltas; ``None`` when they do not, or send none."""
        codec = self._codec(plan, group)
        if codec is None:
            return None
        return Uplink(codec, self._compression.feedback, fresh, self._compression.smallest)

    def begin(self, plan: RoundPlan, state: RunState) -> RunState:
        """The state of a run before its first round, with what the groups are sent to start from."""
        sent = [self._first(w, plan, group) for group, w in zip(plan.groups, state.committed, strict=True)]
        return _sent(state, plan, sent, holders={worker for group in plan.groups for worker in group})

    def send(
        self, plan: RoundPlan, commits: Sequence[Commit], state: RunState, outcomes: Sequence[Outcome]
    ) -> RunState:
        """The state after a round that began in ``state``, with what its groups are sent.

        What counts from here on is what the workers hold. After the last round nothing is sent: a group keeps
        what it has committed, and what is owed is paid.
        """
        sent = [
            self._after(commit, plan, group, base=state.committed[index], owed=state.owed.get(index))
            for index, (group, commit) in enumerate(zip(plan.groups, commits, strict=True))
        ]
        holders = {outcome.worker_id for outcome in outcomes if isinstance(outcome, Update)}
        return _sent(state, plan, sent, holders=holders)

    def _first(self, weights: Weights, plan: RoundPlan, group: Sequence[int]) -> Broadcast:
        codec = self._codec(plan, group) if self._compression.downlink else None
        if codec is None:
            return Broadcast(weights)
        if codec.bits < FIRST_BITS:
            codec = PackedCodec(bits=FIRST_BITS)
        # What a packet leaves out of random weights is not owed: it would take bits from what is learnt.
        dense = dense_ranges(self._layout_of(group[0]), smallest=self._compression.smallest)
        packet = codec.encode(weights.vector, dense=dense, generator=self._draws(plan, group))
        return Broadcast(replace(weights, vector=decode(packet)), None, Downlink(packet, base_round=0))

    def _after(
        self, commit: Commit, plan: RoundPlan, group: Sequence[int], *, base: Weights, owed: Tensor | None
    ) -> Broadcast:
        last = plan.progress[1] == 1.0
        codec = self._codec(plan, group) if self._compression.downlink and not last else None
        if codec is None:
            return Broadcast(commit.weights if owed is None else paid(commit.weights, owed))
        if not commit.num_samples:
            return Broadcast(commit.weights, owed)
        step = commit.weights.vector - base.vector
        packet, decoded, owed = encode_step(
            codec,
            step,
            owed,
            layout=self._layout_of(group[0]),
            smallest=self._compression.smallest,
            feedback=self._compression.feedback,
            generator=self._draws(plan, group),
        )
        weights = replace(commit.weights, vector=base.vector + decoded)
        return Broadcast(weights, owed, Downlink(packet, base_round=plan.index))

    def _codec(self, plan: RoundPlan, group: Sequence[int]) -> PackedCodec | EntropyCodec | None:
        return self._compression.codec_at(plan.index, plan.progress[0]) if travels(plan, group) else None

    def _draws(self, plan: RoundPlan, group: Sequence[int]) -> torch.Generator:
        return generator(self._seed, "group", group[0], "encode", plan.index)


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


def _sent(state: RunState, plan: RoundPlan, sent: Sequence[Broadcast], *, holders: set[int]) -> RunState:
    """The state with what was sent; packets go to those who hold what they are added to."""
    links = {
        worker: each.downlink
        for group, each in zip(plan.groups, sent, strict=True)
        for worker in group
        if each.downlink is not None and worker in holders
    }
    owed = {index: each.owed for index, each in enumerate(sent) if each.owed is not None}
    return replace(state, committed=tuple(each.weights for each in sent), owed=owed, downlinks=links)
