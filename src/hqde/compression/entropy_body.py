"""What an entropy-coded packet holds behind its header, and how it is read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hqde.compression.chunks import CHUNK, read_chunk, read_factors
from hqde.compression.header import Header
from hqde.compression.packet import in_range, reads_packets
from hqde.compression.packing import BLOCK
from hqde.compression.quantize import FLOAT32_MAX
from hqde.compression.stages import Stage, stage_by_id
from hqde.errors import PacketError

ENTROPY_ID = 2
PARAMETERS = struct.Struct("<fBBII")  # step, stage, block factors?, chunks, values in the last one
SIZES = np.dtype([("factors", "<u4"), ("levels", "<u4")])


def write_body(
    step: float, stage: Stage, has_factors: bool, tail: int, chunks: Sequence[tuple[bytes, bytes]]
) -> Tensor:
    """Parameters, the sizes of the chunks, the chunks, as bytes; see ``EntropyBody``."""
    head = PARAMETERS.pack(step, stage.stage_id, has_factors, len(chunks), tail)
    sizes = np.array([(len(factors), len(data)) for factors, data in chunks], dtype=SIZES).tobytes()
    parts = b"".join(factors + data for factors, data in chunks)
    return torch.frombuffer(bytearray(head + sizes + parts), dtype=torch.uint8)


@dataclass(frozen=True)
class EntropyBody:
    """Parameters, the sizes of the chunks, the chunks; each chunk can be read by itself.

    Attributes:
        lead: values of the first chunk that belong to no coordinate.
        step: in the vector's unit.
        stage: codes the symbols.
        has_factors: whether blocks have steps of their own.
        tail: values in the last chunk; all others have 65,536.
        chunks: of each, the factors and the levels.
    """

    codec_id: ClassVar[int] = ENTROPY_ID
    name: ClassVar[str] = "entropy"
    lead: int
    step: float
    stage: Stage
    has_factors: bool
    tail: int
    chunks: list[tuple[bytes, bytes]]

    def cut(self, start: int, stop: int) -> tuple[int, list[Tensor]]:
        """The chunks that stream[start:stop] touches."""
        first, last = (self.lead + start) // CHUNK, -(-(self.lead + stop) // CHUNK)
        chosen = self.chunks[first:last] if start < stop else []
        tail = (self.tail if last == len(self.chunks) else CHUNK) if chosen else 0
        lead = (self.lead + start) % CHUNK if chosen else 0
        return lead, [write_body(self.step, self.stage, self.has_factors, tail, chosen)]

    def read(self, out: Tensor, header: Header, device: torch.device) -> None:
        """Decode chunk by chunk into ``out``."""
        done, size = 0, header.stream.size
        for index, (factors, data) in enumerate(self.chunks):
            count = self.tail if index == len(self.chunks) - 1 else CHUNK
            values = read_chunk(data, count, self.step, self.stage)
            if self.has_factors:
                values *= read_factors(factors, count).repeat_interleave(BLOCK)[:count]
                values.clamp_(-FLOAT32_MAX, FLOAT32_MAX)
            values = values[self.lead if index == 0 else 0 :][: size - done]
            header.stream.write(out, done, in_range(values, header.dtype).to(device))
            done += len(values)


@reads_packets(ENTROPY_ID)
def open_entropy(header: Header, body: Tensor) -> EntropyBody:
    """Check sizes and parameters of an entropy body; what is in the chunks is checked as they are read.

    Raises:
        PacketError: sizes that do not fit the header or each other, a step that is not positive and finite.
        MissingExtraError: an entropy stage that is not installed here.
    """
    data = body.numpy().data
    if len(data) < PARAMETERS.size:
        raise PacketError(f"an entropy body of {len(data)} bytes is too short")
    step, stage_id, has_factors, num_chunks, tail = PARAMETERS.unpack_from(data)
    total = header.lead + header.stream.size
    if num_chunks * SIZES.itemsize > len(data) - PARAMETERS.size or num_chunks != -(-total // CHUNK):
        raise PacketError(f"{num_chunks} chunks in {len(data)} bytes do not hold {header.stream.size} values")
    if not 0 < step <= FLOAT32_MAX or has_factors > 1:
        raise PacketError(f"the packet's step is {step}; it must be positive and finite")
    held = max(0, num_chunks - 1) * CHUNK + tail
    if tail > CHUNK or held < total or header.lead >= CHUNK or (header.lead and not header.stream.size):
        raise PacketError(f"the packet's chunks hold {held} values where {total} are needed")
    table_end = PARAMETERS.size + num_chunks * SIZES.itemsize
    table = np.frombuffer(data[PARAMETERS.size : table_end], dtype=SIZES)
    sizes = np.stack([table["factors"], table["levels"]], axis=1).reshape(-1).astype(np.int64)
    if sizes.sum() != len(data) - table_end:
        raise PacketError(
            f"chunks of {sizes.sum()} bytes where the body has {len(data) - table_end} for them"
        )
    ends = accumulate(sizes.tolist(), initial=table_end)
    pieces = [bytes(data[a:b]) for a, b in pairwise(ends)]
    chunks = list(zip(pieces[::2], pieces[1::2], strict=True))
    return EntropyBody(header.lead, step, stage_by_id(stage_id), bool(has_factors), tail, chunks)
