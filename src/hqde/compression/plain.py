"""No compression, in the same envelope as the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.compression.header import Header, check_vector, refuse_nonfinite, seal
from hqde.compression.packet import Packet, reads_packets
from hqde.compression.ranges import Range, Stream
from hqde.errors import PacketError

PLAIN_ID = 0


@dataclass(frozen=True)
class NoCodec:
    """The vector's own bytes behind a header: nothing is lost.

    Example:
        >>> from hqde.compression import decode
        >>> packet = NoCodec().encode(torch.tensor([0.1, 0.2]))
        >>> decode(packet), packet.nbytes
        (tensor([0.1000, 0.2000]), 56)
    """

    name: ClassVar[str] = "none"
    is_unbiased: ClassVar[bool] = False

    def encode(
        self,
        vector: Tensor,
        *,
        dense: Sequence[Range] = (),  # noqa: ARG002 - everything is dense
        gradient: Tensor | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> Packet:
        """Wrap a vector ``(n,)`` of floating numbers; the other arguments are as for every codec, and not
        needed.

        Raises:
            NonFiniteError: values that are NaN, infinite or beyond float32, as for every codec.
            PreconditionError: not a floating vector.
        """
        check_vector(vector)
        refuse_nonfinite(vector)
        values = vector.detach().cpu().contiguous()
        return Packet(
            seal(
                Header(PLAIN_ID, vector.dtype, Stream(len(vector))),
                torch.empty(0, dtype=torch.float16),
                [values.view(torch.uint8)],
            )
        )


@dataclass(frozen=True)
class PlainBody:
    """The values in the header's number format."""

    codec_id: ClassVar[int] = PLAIN_ID
    name: ClassVar[str] = "none"
    values: Tensor

    def cut(self, start: int, stop: int) -> tuple[int, list[Tensor]]:
        """The bytes of these values."""
        return 0, [self.values[start:stop].view(torch.uint8)]

    def read(self, out: Tensor, header: Header, device: torch.device) -> None:
        """Copy into ``out``."""
        header.stream.write(out, 0, self.values.to(device))


@reads_packets(PLAIN_ID)
def open_plain(header: Header, body: Tensor) -> PlainBody:
    """Check the size and that all is finite.

    Raises:
        PacketError: it is not.
    """
    if header.lead or len(body) != header.stream.size * header.dtype.itemsize:
        raise PacketError(f"{header.stream.size} values of {header.dtype} do not make {len(body)} bytes")
    values = body.view(header.dtype)
    if not bool(torch.isfinite(values.float()).all()):
        raise PacketError("the packet holds values that are NaN, infinite or beyond float32")
    return PlainBody(values)
