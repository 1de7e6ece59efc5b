"""A compressed vector as the bytes that travel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from hqde.compression.header import Header, open_header, seal
from hqde.compression.ranges import Stream
from hqde.errors import PacketError, PreconditionError


class Body(Protocol):
    """What a codec has to say about the bytes behind the header: one object per kind of packet."""

    codec_id: ClassVar[int]
    name: ClassVar[str]

    def cut(self, start: int, stop: int) -> tuple[int, list[Tensor]]:
        """Lead and bytes of a body that holds stream[start:stop] alone."""
        ...

    def read(self, out: Tensor, header: Header, device: torch.device) -> None:
        """Decode the stream into its places in the vector ``out``, which is on ``device``."""
        ...


Opener = Callable[[Header, Tensor], Body]
_OPENERS: dict[int, Opener] = {}


def reads_packets(codec_id: int) -> Callable[[Opener], Opener]:
    """Make a function the reader of a codec's bodies: it checks all sizes and raises PacketError."""

    def register(opener: Opener) -> Opener:
        _OPENERS[codec_id] = opener
        return opener

    return register


@dataclass(frozen=True, eq=False)
class Packet:
    """A vector, compressed: nothing else travels, and nothing else is counted.

    It describes itself (codec, version, number format, length, ranges, sizes) and carries a CRC-32 of all
    other bytes. Before anything is allocated for the vector, ``decode`` and ``cut`` check the whole header
    against the payload that is really there. The check is done once per packet: do not write into
    ``payload``.

    Args:
        payload: ``(nbytes,)`` uint8 on the CPU.

    Raises:
        PacketError: a payload that is not a vector of bytes. What the bytes say is checked when it is needed.

    Example:
        >>> from hqde.compression import PackedCodec, decode
        >>> packet = PackedCodec(bits=4).encode(torch.linspace(-1, 1, 1000))
        >>> packet.nbytes, packet.count
        (581, 1000)
        >>> part = packet.cut(250, 300)
        >>> bool((decode(part) == decode(packet)[250:300]).all()), part.nbytes
        (True, 201)
        >>> bool((decode(Packet.from_bytes(packet.to_bytes())) == decode(packet)).all())
        True
    """

    payload: Tensor

    def __post_init__(self) -> None:
        payload = self.payload
        if payload.dtype != torch.uint8 or payload.dim() != 1 or payload.device.type != "cpu":
            raise PacketError(
                "a payload is a vector of bytes on the CPU, "
                f"got {payload.dtype} of shape {tuple(payload.shape)} on {payload.device}"
            )
        if not payload.is_contiguous() or payload.storage_offset() % 16:
            object.__setattr__(self, "payload", payload.clone(memory_format=torch.contiguous_format))

    def __reduce__(self) -> tuple[Any, ...]:
        return Packet, (self.payload,)  # without what was checked here: the other side checks for itself

    @property
    def nbytes(self) -> int:
        """True size in bytes, header and checksum included."""
        return len(self.payload)

    @property
    def count(self) -> int:
        """Length of the vector. Raises PacketError as ``decode``."""
        return self.header.count

    @cached_property
    def header(self) -> Header:
        """What stands before the body, checked. Raises PacketError."""
        return open_header(self.payload)

    @cached_property
    def body(self) -> Body:
        """What the codec wrote, checked. Raises PacketError."""
        header = self.header
        if header.codec_id not in _OPENERS:
            raise PacketError(f"the packet names codec {header.codec_id}; known are {sorted(_OPENERS)}")
        return _OPENERS[header.codec_id](header, self.payload[header.body_at :])

    def to_bytes(self) -> bytes:
        """The payload, to be written or sent."""
        return self.payload.numpy().tobytes()

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Packet:
        """A packet from a copy of the bytes."""
        if not len(data):
            return cls(torch.empty(0, dtype=torch.uint8))
        return cls(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def cut(self, start: int, stop: int) -> Packet:
        """A packet of its own for the coordinates [start, stop): it decodes to exactly those bits.

        Only the blocks (packed) or chunks (entropy) that are touched are copied; nothing is decoded.

        Args:
            start, stop: 0 <= start < stop <= count.

        Raises:
            PreconditionError: a range that is empty or leaves the vector.
            PacketError: as ``decode``.
        """
        header, body = self.header, self.body
        stream = header.stream
        if not 0 <= start < stop <= stream.count:
            raise PreconditionError(f"cannot cut [{start}, {stop}) out of a packet of {stream.count} values")
        if stop - start == stream.count:
            return self
        begin, end = stream.position(start), stream.position(stop)
        lead, parts = body.cut(begin, end)
        kept = [
            (max(a, start) - start, min(b, stop) - start, scale)
            for (a, b), scale in zip(stream.dense, header.scales, strict=True)
            if a < stop and b > start
        ]
        part = Header(
            header.codec_id,
            header.dtype,
            Stream(stop - start, tuple((a, b) for a, b, _ in kept)),
            tuple(scale for _, _, scale in kept),
            lead,
        )
        before = start - begin  # dense coordinates before the cut
        dense = header.read_dense(self.payload)[before : before + part.stream.num_dense]
        return Packet(seal(part, dense, parts))


def decode(
    packet: Packet, *, expected_count: int | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """The vector that a packet of any codec holds.

    Args:
        packet: from ``encode``, ``cut`` or ``Packet.from_bytes``.
        expected_count: length that the vector must have; give it wherever it is known, because it also bounds
            what a forged packet can make the reader allocate.
        device: where to decode.

    Returns:
        ``(count,)`` in the number format of the vector that was encoded; every value is finite.

    Raises:
        PacketError: truncated, too long, altered, from a newer version, contradicting itself, or another
            count.

    Example:
        >>> from hqde.compression import NoCodec
        >>> decode(NoCodec().encode(torch.tensor([1.0, 2.0])), expected_count=2)
        tensor([1., 2.])
    """
    header = packet.header
    if expected_count is not None and header.count != expected_count:
        raise PacketError(f"the packet holds {header.count} values where {expected_count} are expected")
    body, device = packet.body, torch.device(device)
    out = torch.empty(header.count, dtype=header.dtype, device=device)
    body.read(out, header, device)
    dense, done = header.read_dense(packet.payload).to(device).double(), 0
    for (start, stop), scale in zip(header.stream.dense, header.scales, strict=True):
        out[start:stop] = in_range(dense[done : done + stop - start] * scale, header.dtype)
        done += stop - start
    return out


def in_range(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values clipped, in place, to what ``dtype`` can hold: rounding must not make the largest infinite."""
    if dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and values.dtype == torch.float64):
        largest = torch.finfo(dtype).max
        values.clamp_(-largest, largest)
    return values
