"""One round's work for one worker, and which examples are its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.compression import Downlink, Uplink
from hqde.seeding import generator
from hqde.training.perturbing import Perturbation
from hqde.weights import Weights


@dataclass(frozen=True)
class Order:
    """One round's work for one worker.

    Attributes:
        worker_id, round_index, attempt: what the resulting update will be tagged with.
        epoch: 1, 2, …; chooses the data order.
        start: weights last committed for the worker's group.
        keep_buffers: leave the worker's own buffers (BatchNorm statistics) in place when loading ``start``.
        fresh_optimizer: forget the optimizer's state first, and the worker's own buffers too (after a
            rejected update, which may have made either not finite).
        shard: ``(k,)`` int64 indices of the worker's examples in this epoch.
        first_batch, num_batches: which of the epoch's batches; ``None`` means all that are left.
        progress: fractions of the run at the round's start and end.
        uplink: how to encode the delta; ``None`` hands it in as it is.
        downlink: how a worker that still holds an earlier start makes ``start`` of it, for backends whose
            workers are elsewhere; ``None`` sends ``start`` itself.
        pull: how far the worker is drawn to ``start`` from where its last round ended, in [0, 1]; it keeps
            where this one ends. ``None`` begins at ``start``, and keeps nothing.
        perturbation: moves where the round begins, together with those of the group; ``None`` does not.
    """

    worker_id: int
    round_index: int
    attempt: int
    epoch: int
    start: Weights
    keep_buffers: bool
    fresh_optimizer: bool
    shard: Tensor
    first_batch: int
    num_batches: int | None
    progress: tuple[float, float]
    uplink: Uplink | None = None
    downlink: Downlink | None = None
    pull: float | None = None
    perturbation: Perturbation | None = None


def progress_at(order: Order, step: int, num_steps: int) -> float:
    """How much of the run is done in the middle of the round's step 0, 1, …

    The middle: no step is at rate 0 then, and none before a restart at the rate after it.
    """
    first, last = order.progress
    return first + (last - first) * (step + 0.5) / num_steps


def epoch_batches(order: Order, *, seed: int, batch_size: int) -> Iterator[Tensor]:
    """The index tensors of the round's batches, in the worker's own order of this epoch.

    A last batch of a single example is left out when there are others: batch normalisation cannot train on
    it.
    """
    draws = generator(seed, "worker", order.worker_id, "order", order.epoch)
    shuffled = order.shard[torch.randperm(len(order.shard), generator=draws)]
    batches = list(shuffled.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches.pop()
    last = None if order.num_batches is None else order.first_batch + order.num_batches
    yield from batches[order.first_batch : last]


def count_batches(num_examples: int, batch_size: int) -> int:
    """Batches of an epoch over a shard of ``num_examples``, as ``epoch_batches`` cuts them.

    >>> count_batches(257, 128), count_batches(258, 128), count_batches(1, 128), count_batches(3, 1)
    (2, 3, 1, 3)
    """
    full, rest = divmod(num_examples, batch_size)
    return max(1, full + (rest > 1))


def count_samples(
    num_examples: int, batch_size: int, *, first_batch: int = 0, num_batches: int | None = None
) -> int:
    """Examples of a round over a shard, as ``epoch_batches`` cuts them.

    >>> count_samples(257, 128), count_samples(258, 128), count_samples(300, 128, first_batch=2)
    (256, 258, 44)
    """
    left_out = num_examples > batch_size > 1 and num_examples % batch_size == 1
    whole = num_examples - left_out
    last = whole if num_batches is None else min(whole, (first_batch + num_batches) * batch_size)
    return max(0, last - first_batch * batch_size)
