"""What stands before a packet's codes: who wrote them, for which vector, and what was not quantised."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hqde.compression.ranges import Range, Stream
from hqde.errors import NonFiniteError, PacketError, PreconditionError

MAGIC = b"HQDP"
VERSION = 1
FIXED = struct.Struct("<4sHBBQQII")  # magic, version, codec, dtype, total bytes, count, dense ranges, lead
CHECKSUM = struct.Struct("<I")  # of all other bytes
RANGE = np.dtype([("start", "<u8"), ("stop", "<u8"), ("scale", "<f4")])
ALIGNMENT = 16  # of the body, so that its tables can be read as wider numbers
FLOAT32_TINY = float(torch.finfo(torch.float32).smallest_normal)
PREFIX = FIXED.size + CHECKSUM.size
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# A compressed run of zeros is small: without a count to expect, a packet may not ask for more than this.
MOST_VALUES_PER_BYTE = 4096


@dataclass(frozen=True)
class Header:
    """Layout, little-endian: FIXED, CHECKSUM, dense table, dense values (float16), zeros up to a multiple of
    16.

    Attributes:
        codec_id: who reads the body.
        dtype: of the vector.
        stream: its length, and what of it the body holds.
        scales: of the dense ranges.
        lead: values at the start of the body's first block or chunk that belong to no coordinate.
    """

    codec_id: int
    dtype: torch.dtype
    stream: Stream
    scales: tuple[float, ...] = ()
    lead: int = 0

    @property
    def count(self) -> int:
        """Length of the vector."""
        return self.stream.count

    @property
    def dense_at(self) -> int:
        """Where the dense values begin."""
        return PREFIX + RANGE.itemsize * len(self.scales)

    @cached_property
    def body_at(self) -> int:
        """Where the body begins."""
        end = self.dense_at + 2 * self.stream.num_dense
        return end + -end % ALIGNMENT

    def read_dense(self, payload: Tensor) -> Tensor:
        """The dense values of a payload on any device, float16, each within ±1 of its range's scale."""
        end = self.dense_at + 2 * self.stream.num_dense
        return payload[self.dense_at : end].clone().view(torch.float16)


def seal(header: Header, dense_values: Tensor, body: Sequence[Tensor]) -> Tensor:
    """Header, dense values and body as one checksummed payload on the CPU.

    Args:
        header: whose ``body_at`` says how long the first two are.
        dense_values: float16, of all dense ranges.
        body: uint8 vectors, written one behind the other.

    Returns:
        ``(nbytes,)`` uint8.
    """
    payload = begin(header, dense_values, sum(len(part) for part in body))
    at = header.body_at
    for part in body:
        payload[at : at + len(part)] = part
        at += len(part)
    return finish(payload)


def begin(header: Header, dense_values: Tensor, body_bytes: int) -> Tensor:
    """A payload with everything before the body; the body is still to be written, behind ``body_at``."""
    total = header.body_at + body_bytes
    payload = torch.empty(total, dtype=torch.uint8)
    raw = payload.numpy().data
    stream = header.stream
    FIXED.pack_into(
        raw, 0, MAGIC, VERSION, header.codec_id, DTYPES.index(header.dtype), total, stream.count,
        len(header.scales), header.lead,
    )  # fmt: skip
    table = np.empty(len(header.scales), RANGE)
    if len(table):
        ends = np.array(stream.dense, dtype=np.uint64)
        table["start"], table["stop"], table["scale"] = ends[:, 0], ends[:, 1], header.scales
    payload[PREFIX : header.dense_at] = torch.from_numpy(table.view(np.uint8))
    at = header.dense_at + 2 * len(dense_values)
    payload[header.dense_at : at] = dense_values.view(torch.uint8)
    payload[at : header.body_at] = 0
    return payload


def finish(payload: Tensor) -> Tensor:
    """The payload, once its body is written, with its checksum."""
    raw = payload.numpy().data
    CHECKSUM.pack_into(raw, FIXED.size, checksum(raw))
    return payload


def checksum(raw: memoryview) -> int:
    """CRC-32 of everything but its own place."""
    return zlib.crc32(raw[PREFIX:], zlib.crc32(raw[: FIXED.size]))


def open_header(payload: Tensor) -> Header:
    """Read and check everything that stands before the body; nothing is allocated for the vector.

    Raises:
        PacketError: not a packet, a newer version, truncated, too long, altered, or contradicting itself.
    """
    raw = payload.numpy().data
    if len(raw) < PREFIX:
        raise PacketError(f"a packet has at least {PREFIX} bytes, got {len(raw)}: it is truncated")
    magic, version, codec_id, dtype, total, count, num_ranges, lead = FIXED.unpack_from(raw)
    if magic != MAGIC:
        raise PacketError(f"these {len(raw)} bytes are no packet: they begin with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise PacketError(
            f"the packet has version {version}, this HQDE reads {VERSION}: update the older side"
        )
    if total != len(raw):
        kind = "truncated" if total > len(raw) else "too long"
        raise PacketError(f"the packet is {kind}: {len(raw)} bytes where its header says {total}")
    if CHECKSUM.unpack_from(raw, FIXED.size)[0] != checksum(raw):
        raise PacketError(f"the packet of {len(raw)} bytes was altered: its checksum does not fit")
    if dtype >= len(DTYPES):
        raise PacketError(f"the packet names number format {dtype}; known are 0 to {len(DTYPES) - 1}")
    if num_ranges * RANGE.itemsize > total - PREFIX:
        raise PacketError(f"{num_ranges} dense ranges do not fit into a packet of {total} bytes")
    if count > MOST_VALUES_PER_BYTE * total:
        raise PacketError(
            f"a packet of {total} bytes cannot hold the {count} values that its header declares"
        )
    table = np.frombuffer(raw[PREFIX : PREFIX + num_ranges * RANGE.itemsize], dtype=RANGE)
    if num_ranges and max(table["start"].max(), table["stop"].max()) > count:
        raise PacketError(f"a dense range of the packet leaves its vector of {count}")
    scales = table["scale"]
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise PacketError("a dense range of the packet has a scale that is negative, NaN or infinite")
    ranges = tuple(zip(table["start"].tolist(), table["stop"].tolist(), strict=True))
    try:
        stream = Stream(count, ranges)
    except PreconditionError as broken:
        raise PacketError(f"the packet contradicts itself: {broken}") from None
    header = Header(codec_id, DTYPES[dtype], stream, tuple(scales.tolist()), lead)
    end = header.dense_at + 2 * stream.num_dense
    if header.body_at > total or any(raw[end : header.body_at]):
        raise PacketError(f"{stream.num_dense} dense values do not fit into a packet of {total} bytes")
    values = np.frombuffer(raw[header.dense_at : end], dtype="<f2")
    if not (np.abs(values) <= 1).all():
        raise PacketError("a dense value of the packet is NaN or larger than its range's scale")
    return header


def scale_dense(vector: Tensor, ranges: Sequence[Range]) -> tuple[Tensor, tuple[float, ...]]:
    """Float16 values of the dense ranges, each divided by its range's largest magnitude.

    Raises:
        NonFiniteError: a value that float32 cannot hold.
    """
    if not ranges:
        return torch.empty(0, dtype=torch.float16), ()
    pieces = [vector[start:stop].double() for start, stop in ranges]
    largest = torch.stack([piece.abs().amax() for piece in pieces]).float()
    if not bool(torch.isfinite(largest).all()):
        refuse_nonfinite(vector)
    safe = torch.where(largest > 0, largest, 1.0).double().unbind()
    values = [(piece / scale).clamp_(-1.0, 1.0) for piece, scale in zip(pieces, safe, strict=True)]
    return torch.cat(values).to(torch.float16), tuple(largest.tolist())


def refuse_nonfinite(vector: Tensor) -> None:
    """Say how many values of a vector cannot be stored, if any.

    Raises:
        NonFiniteError: values that are NaN, infinite, or beyond float32's range.
    """
    bad = int((~torch.isfinite(vector.float())).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {vector.numel()} values are NaN, infinite or beyond float32: "
            "such a vector is not compressed"
        )


def check_vector(vector: Tensor) -> None:
    """Refuse what is not a vector of floating numbers (PreconditionError)."""
    if vector.dim() != 1 or not vector.is_floating_point():
        raise PreconditionError(
            f"a codec takes a floating vector, got {vector.dtype} of shape {tuple(vector.shape)}"
        )
