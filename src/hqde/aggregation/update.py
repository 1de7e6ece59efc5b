"""What a worker hands in at the end of its round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hqde.compression import Packet
from hqde.finite import has_finite_sum


@dataclass(frozen=True)
class RemoteDelta:
    """A delta that stays where its worker put it. Only the backend that handed it out can read it.

    Attributes:
        size, dtype: of the vector.
        num_nonfinite: elements that are NaN or infinite, counted where the vector is.
        norm: its Euclidean norm, taken there too (``norm_of``).
        handle: whatever the backend needs to find it.
    """

    size: int
    dtype: torch.dtype
    num_nonfinite: int
    norm: float
    handle: Any

    @property
    def shape(self) -> tuple[int]:
        """``(size,)``."""
        return (self.size,)


Delta: TypeAlias = Tensor | RemoteDelta


def norm_of(delta: Delta) -> float:
    """The Euclidean norm of a delta, wherever it is.

    >>> norm_of(torch.tensor([3.0, 4.0]))
    5.0
    """
    if isinstance(delta, RemoteDelta):
        return delta.norm
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64))


def count_nonfinite(vector: Tensor) -> int:
    """How many elements are NaN or infinite; one pass over the vector when there are none.

    >>> count_nonfinite(torch.tensor([1.0, float("nan")]))
    1
    """
    if has_finite_sum(vector):  # a finite sum has finite terms
        return 0
    return int((~torch.isfinite(vector)).sum())


@dataclass(frozen=True)
class Update:
    """One worker's contribution to one round.

    Attributes:
        worker_id: who trained.
        round_index: the round the update belongs to; any other is stale.
        attempt: 0 for the first try at the round, 1, 2, … after restarts.
        delta: ``(d,)`` floating; local weights minus the weights last committed for the worker's group,
            parameters first, floating buffers after them.
        integers: ``(k,)`` int64; the worker's integer buffers as they stand.
        num_samples: examples the worker was given in the round (the engine's count, not a claim).
        loss: mean training loss over the round's samples; NaN when it had none.
        accuracy: fraction of the round's samples classified right while training; ``None`` in regression,
            and when there were none.
        learning_rate: rate of the round's last step.
        efficiency: the worker's efficiency score after the round.
        seconds: wall time of the round in the worker.
        node_load: fraction of its machine that others kept busy meanwhile; 0 where nobody looked.
        packet: the encoded delta, of which ``delta`` is what decodes from it; ``None`` when it was not
            encoded, or when the delta has left its process, as a packet, already.
        sent_bytes, received_bytes: what the worker hands in and what it was given, as they travel.
        data_s, encode_s: of ``seconds``, waiting for batches, and encoding the delta.
        cpu_s: processor time of the worker's process meanwhile, all threads together; of its thread, where
            others train beside it in the process.
        peak_rss_bytes: most memory that its process ever had; ``None`` where it has none of its own.
    """

    worker_id: int
    round_index: int
    attempt: int
    delta: Delta
    integers: Tensor
    num_samples: int
    loss: float
    accuracy: float | None
    learning_rate: float
    efficiency: float
    seconds: float
    node_load: float = 0.0
    packet: Packet | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    data_s: float | None = None
    encode_s: float | None = None
    cpu_s: float | None = None
    peak_rss_bytes: int | None = None
