"""tmp"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hqde.compression.packet import Packet, decode


def with_feedback(
    codec, vector: Tensor, residual: Tensor | None, *, dense: Sequence = ()
) -> tuple[Packet, Tensor, Tensor]:
    v = vector if residual is None else vector + residual
    packet = codec.encode(v, dense=dense)
    decoded = decode(packet)
    owed = v - decoded
    for a, b in dense:
        owed[a:b] = 0
    return packet, decoded, owed
