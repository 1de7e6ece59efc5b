"""What a packed packet holds behind its header, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hqde.compression.header import Header
from hqde.compression.importance import CHUNK
from hqde.compression.packet import in_range, reads_packets
from hqde.compression.packing import BLOCK, pack, unpack, unpack_blocks
from hqde.compression.quantize import dequantize_blocks, largest_scale
from hqde.compression.ranges import Range
from hqde.errors import PacketError

PACKED_ID = 1
UNIT = BLOCK // 8  # bytes that one bit of width costs a block


def chunk_blocks(device: torch.device) -> int:
    """How many blocks are worked on at a time."""
    return CHUNK if device.type == "cpu" else 64 * CHUNK


def chunks(count: int, device: torch.device) -> Iterator[Range]:
    """Ranges of blocks whose intermediate results stay in a core's cache; a GPU takes more at a time."""
    size = chunk_blocks(device)
    for start in range(0, count, size):
        yield start, min(start + size, count)


def starts(widths: Tensor) -> Tensor:
    """``(n + 1,)`` int64: where each block's units begin, and where the last one ends."""
    return torch.cat([widths.new_zeros(1, dtype=torch.int64), widths.long().cumsum(0)])


def buckets(widths: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every width that occurs, with the blocks that have it."""
    for bits in torch.unique(widths).tolist():
        yield bits, (widths == bits).nonzero().squeeze(1)


@dataclass(frozen=True)
class PackedBody:
    """Codes block by block, then scales (bfloat16), then widths (4 bits each, if they differ), then one byte.

    The last byte is the width of all blocks, or 0 where they differ.
    """

    codec_id: ClassVar[int] = PACKED_ID
    name: ClassVar[str] = "packed"
    lead: int
    codes: Tensor
    scales: Tensor
    widths: int | Tensor

    def cut(self, start: int, stop: int) -> tuple[int, list[Tensor]]:
        """The blocks that stream[start:stop] touches."""
        if start == stop:
            return 0, [torch.tensor([1], dtype=torch.uint8)]
        first, last = (self.lead + start) // BLOCK, -(-(self.lead + stop) // BLOCK)
        scales = self.scales[first:last].view(torch.uint8)
        lead = (self.lead + start) % BLOCK
        if isinstance(self.widths, int):
            step = UNIT * self.widths
            ends = torch.tensor([self.widths], dtype=torch.uint8)
            return lead, [self.codes[first * step : last * step], scales, ends]
        begins = starts(self.widths)
        codes = self.codes[UNIT * int(begins[first]) : UNIT * int(begins[last])]
        kept = self.widths[first:last]
        ends = torch.zeros(1, dtype=torch.uint8)
        return lead, [codes, scales, pack(kept - 1, 4), ends]

    @staticmethod
    def _target(out: Tensor, header: Header, begin: int, end: int) -> Tensor | None:
        """Where stream[begin:end] stands in ``out``, if it does so in one piece and as float32."""
        if begin < 0 or end > header.stream.size or header.dtype != torch.float32:
            return None
        pieces = list(header.stream.pieces(begin, end))
        return out[pieces[0][0] : pieces[0][1]].view(-1, BLOCK) if len(pieces) == 1 else None

    def read(self, out: Tensor, header: Header, device: torch.device) -> None:
        """Decode chunk by chunk into ``out``."""
        codes, scales, size = self.codes.to(device), self.scales.to(device), header.stream.size
        if isinstance(self.widths, int):
            packed = codes.view(-1, UNIT * self.widths)
            for start, stop in chunks(len(scales), device):
                chunk = unpack_blocks(packed[start:stop], self.widths)
                begin, end = start * BLOCK - self.lead, stop * BLOCK - self.lead
                target = self._target(out, header, begin, end)
                values = dequantize_blocks(chunk, scales[start:stop], self.widths, out=target)
                if target is None:
                    inside = values.view(-1)[max(0, -begin) :][: size - max(0, begin)]
                    header.stream.write(out, max(0, begin), in_range(inside, header.dtype))
            return
        widths = self.widths.to(device)
        begins, units = starts(widths), codes.view(torch.complex128)
        # Whole blocks of a vector that is nothing but blocks are decoded to where they belong.
        direct = header.dtype == torch.float32 and not (header.stream.dense or self.lead)
        full = size // BLOCK
        rows = (
            out[: full * BLOCK].view(-1, BLOCK)
            if direct
            else out.new_empty(len(scales), BLOCK, dtype=torch.float32)
        )
        for bits, members in buckets(widths):
            steps = torch.arange(bits, device=device)
            for start, stop in chunks(len(members), device):
                chosen = members[start:stop]
                places = (begins[chosen].unsqueeze(1) + steps).view(-1)
                packed = units[places].view(-1, bits).view(torch.uint8)
                values = dequantize_blocks(unpack_blocks(packed, bits), scales[chosen], bits)
                if direct and int(chosen[-1]) == full:
                    out[full * BLOCK :] = values[-1, : size - full * BLOCK]
                    chosen, values = chosen[:-1], values[:-1]
                rows[chosen] = values
        if direct:
            return
        values = rows.view(-1)[self.lead : self.lead + size]
        header.stream.write(out, 0, in_range(values, header.dtype))


@reads_packets(PACKED_ID)
def open_packed(header: Header, body: Tensor) -> PackedBody:
    """Check sizes and scales of a packed body.

    Raises:
        PacketError: sizes that do not fit the header, or a scale that could decode to something infinite.
    """
    num_blocks = -(-(header.lead + header.stream.size) // BLOCK)
    if header.lead >= BLOCK or (header.lead and not header.stream.size) or not len(body):
        raise PacketError(
            f"a packed body of {len(body)} bytes cannot begin {header.lead} values into a block"
        )
    bits, rest = int(body[-1]), len(body) - 1 - 2 * num_blocks
    table = 0 if bits else (num_blocks + 7) // 8 * 4
    end = rest - table  # of the codes
    if bits > 16 or end < 0:
        raise PacketError(f"{num_blocks} blocks of {bits or 'mixed'} bits do not fit into {len(body)} bytes")
    widths: int | Tensor = bits
    if not bits:
        widths = (unpack(body[-1 - table : -1], 4, num_blocks) + 1).to(torch.uint8)
    total = bits * num_blocks if isinstance(widths, int) else int(widths.sum(dtype=torch.int64))
    if UNIT * total != end:
        raise PacketError(f"{num_blocks} blocks have {UNIT * total} bytes of codes, the packet holds {end}")
    scales = body[end : end + 2 * num_blocks].view(torch.bfloat16)
    allowed = torch.tensor([0.0, *(largest_scale(b) for b in range(1, 17))])
    limits = allowed[widths] if isinstance(widths, int) else allowed[widths.long()]
    if not bool(((scales >= 0) & (scales <= limits)).all()):
        raise PacketError("a block of the packet has a scale that is negative, NaN or too large")
    return PackedBody(header.lead, body[:end], scales, widths)
