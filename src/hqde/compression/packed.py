"""Fixed-width codes in blocks of 128: quick, cut anywhere, with bits where they help most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from hqde.compression.allocation import allocate_bits, check_bits, linear_bits
from hqde.compression.header import Header, refuse_nonfinite, scale_dense, seal
from hqde.compression.importance import CHUNK, Importance, block_spread, check_importance
from hqde.compression.packet import Packet, in_range, reads_packets
from hqde.compression.packing import BLOCK, pack, pack_blocks, unpack, unpack_blocks
from hqde.compression.quantize import Rounding, dequantize_blocks, largest_scale, quantize_blocks
from hqde.compression.ranges import Range, Stream, as_ranges
from hqde.errors import ConfigError, NonFiniteError, PacketError, PreconditionError

PACKED_ID = 1
UNIT = BLOCK // 8  # bytes that one bit of width costs a block
Allocation = Literal["adaptive", "uniform", "linear"]


@dataclass(frozen=True)
class PackedCodec:
    """Quantise in blocks of 128, spend a budget of bits where it lowers the error most, pack without gaps.

    A weight costs its block's bits, plus 1/8 bit for the block's scale and, where widths differ, 1/32 bit for
    the width. Decoding is exact arithmetic, so every machine decodes the same numbers.

    Args:
        bits: average over the blocks; met exactly (to half a bit in total).
        min_bits, max_bits: bounds of a block's bits.
        allocation: "adaptive" gives each further bit to the block whose weighted error it lowers most;
            "uniform" gives ``bits``, a whole number, to all; "linear" is the seed's rule
            min + (max - min) · importance, moved to the budget.
        importance: what counts as error: "variance" (the squared error), "magnitude", "fisher"; see
            ``block_spread``.
        rounding: "nearest", or "stochastic": unbiased, noisier, needs a generator.

    Raises:
        ConfigError: bits outside 1 to 16, a budget outside the bounds, an unknown name, a uniform width that
            is no whole number.

    Example:
        >>> from hqde.compression import decode
        >>> codec = PackedCodec(bits=3, allocation="uniform")
        >>> packet = codec.encode(torch.sin(torch.arange(12800.0)))
        >>> 8 * packet.nbytes / packet.count  # bits per weight, everything counted
        3.15...
        >>> decode(packet).shape
        torch.Size([12800])

    Source: block floating point with searched scales; see ``quantize_blocks`` and ``allocate_bits``.
    """

    name: ClassVar[str] = "packed"
    bits: float = 4.0
    min_bits: int = 2
    max_bits: int = 16
    allocation: Allocation = "adaptive"
    importance: Importance = "variance"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if self.allocation not in get_args(Allocation):
            raise ConfigError(
                f"allocation is one of {', '.join(get_args(Allocation))}, got '{self.allocation}'"
            )
        check_importance(self.importance)
        check_rounding(self.rounding)
        if not 1 <= self.bits <= 16:
            raise ConfigError(f"bits per weight lie in 1 to 16, got {self.bits:g}")
        if self.allocation != "uniform":
            check_bits(self.bits, self.min_bits, self.max_bits)
        elif self.bits != int(self.bits):
            raise ConfigError(
                f"a uniform width is a whole number of bits, got {self.bits:g}; use allocation='adaptive'"
            )

    @property
    def is_unbiased(self) -> bool:
        """Whether the decoded vector is right on average, and error feedback therefore out of place."""
        return self.rounding == "stochastic"

    def encode(
        self,
        vector: Tensor,
        *,
        dense: Sequence[Range] = (),
        gradient: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Packet:
        """Compress a vector.

        Args:
            vector: ``(n,)`` float32, float64, float16 or bfloat16, on any device; left as it is.
            dense: sorted disjoint ranges of coordinates to keep as float16, scaled by their largest
                magnitude; see ``dense_ranges``.
            gradient: ``(n,)``, for the importances that look at it.
            generator: for stochastic rounding, on the vector's device.

        Returns:
            the packet; the same bits for the same arguments, however many threads there are.

        Raises:
            NonFiniteError: values that are NaN, infinite or beyond float32.
            PreconditionError: not a floating vector, or ranges or a gradient that do not fit it.
            ConfigError: stochastic rounding without a generator, "fisher" without a gradient.
        """
        check_vector(vector)
        check_generator(self.rounding, generator)
        vector = vector.detach()
        stream = Stream(len(vector), as_ranges(dense))
        blocks = _Blocks(stream, vector)
        try:
            values, scales = scale_dense(vector, stream.dense)
            widths = self._widths(stream, vector, gradient)
            if isinstance(widths, int):
                body = _encode_uniform(blocks, widths, self.rounding, generator)
            else:
                body = _encode_mixed(blocks, widths, self.rounding, generator)
        except NonFiniteError:
            refuse_nonfinite(vector)  # in numbers of the whole vector
            raise
        return Packet(seal(Header(PACKED_ID, vector.dtype, stream, scales), values, body))

    def _widths(self, stream: Stream, vector: Tensor, gradient: Tensor | None) -> int | Tensor:
        """One width for all blocks, or ``(num_blocks,)`` uint8."""
        if self.allocation == "uniform" or self.min_bits == self.max_bits or not stream.size:
            return int(self.bits)
        if gradient is not None:
            if gradient.shape != vector.shape:
                raise PreconditionError(
                    f"a gradient of {tuple(gradient.shape)} for a vector of {tuple(vector.shape)}"
                )
            gradient = stream.read(gradient.detach(), 0, stream.size)
        spread = block_spread(self.importance, stream.read(vector, 0, stream.size), gradient)
        if self.allocation == "adaptive":
            widths = allocate_bits(spread, self.bits, self.min_bits, self.max_bits)
        else:
            score = spread.sqrt()
            score = score / score.amax().clamp(min=1e-30)
            widths = linear_bits(score, self.min_bits, self.max_bits, average_bits=self.bits)
        low, high = (int(bound) for bound in torch.aminmax(widths))
        return low if low == high else widths


@dataclass(frozen=True)
class _Blocks:
    """The stream of a vector as rows of 128 float32; the last row is filled up with its own values."""

    stream: Stream
    vector: Tensor

    @property
    def num(self) -> int:
        return -(-self.stream.size // BLOCK)

    def rows(self, start: int, stop: int) -> Tensor:
        values = self.stream.read(self.vector, start * BLOCK, min(stop * BLOCK, self.stream.size)).float()
        missing = (stop - start) * BLOCK - len(values)
        if missing:
            short = values[len(values) - (BLOCK - missing) :]  # what there is of the last block
            again = torch.arange(missing, device=values.device) % len(short)
            values = torch.cat([values, short[again]])
        return values.view(-1, BLOCK)


def _encode_uniform(
    blocks: _Blocks, bits: int, rounding: Rounding, generator: torch.Generator | None
) -> list[Tensor]:
    device = blocks.vector.device
    packed = torch.empty(blocks.num, UNIT * bits, dtype=torch.uint8, device=device)
    scales = torch.empty(blocks.num, dtype=torch.bfloat16, device=device)
    for start, stop in _chunks(blocks.num, device):
        codes, scales[start:stop] = quantize_blocks(
            blocks.rows(start, stop), bits, rounding=rounding, generator=generator
        )
        packed[start:stop] = pack_blocks(codes, bits)
    return [packed.view(-1), scales.view(torch.uint8), torch.tensor([bits], dtype=torch.uint8)]


def _encode_mixed(
    blocks: _Blocks, widths: Tensor, rounding: Rounding, generator: torch.Generator | None
) -> list[Tensor]:
    device = blocks.vector.device
    starts = _starts(widths)
    units = torch.empty(int(starts[-1]), dtype=torch.complex128, device=device)  # 16 bytes each
    scales = torch.empty(blocks.num, dtype=torch.bfloat16, device=device)
    rows = blocks.rows(0, blocks.num)
    for bits, members in _buckets(widths):
        steps = torch.arange(bits, device=device)
        for start, stop in _chunks(len(members), device):
            chosen = members[start:stop]
            codes, scales[chosen] = quantize_blocks(
                rows.index_select(0, chosen), bits, rounding=rounding, generator=generator
            )
            places = (starts[chosen].unsqueeze(1) + steps).view(-1)
            units[places] = pack_blocks(codes, bits).view(torch.complex128).view(-1)
    return [
        units.view(torch.float64).view(torch.uint8),
        scales.view(torch.uint8),
        pack((widths - 1).cpu(), 4),
        torch.zeros(1, dtype=torch.uint8),
    ]


def _chunks(count: int, device: torch.device) -> Iterator[Range]:
    """Ranges of blocks whose intermediate results stay in a core's cache; a GPU takes more at a time."""
    size = CHUNK if device.type == "cpu" else 64 * CHUNK
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _starts(widths: Tensor) -> Tensor:
    """``(n + 1,)`` int64: where each block's units begin, and where the last one ends."""
    return torch.cat([widths.new_zeros(1, dtype=torch.int64), widths.long().cumsum(0)])


def _buckets(widths: Tensor) -> Iterator[tuple[int, Tensor]]:
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
        starts = _starts(self.widths)
        codes = self.codes[UNIT * int(starts[first]) : UNIT * int(starts[last])]
        kept = self.widths[first:last]
        ends = torch.zeros(1, dtype=torch.uint8)
        return lead, [codes, scales, pack(kept - 1, 4), ends]

    def read(self, out: Tensor, header: Header, device: torch.device) -> None:
        """Decode chunk by chunk into ``out``."""
        codes, scales, size = self.codes.to(device), self.scales.to(device), header.stream.size
        if isinstance(self.widths, int):
            packed = codes.view(-1, UNIT * self.widths)
            for start, stop in _chunks(len(scales), device):
                chunk = unpack_blocks(packed[start:stop], self.widths)
                values = dequantize_blocks(chunk, scales[start:stop], self.widths).view(-1)
                begin = max(0, start * BLOCK - self.lead)
                values = values[max(0, self.lead - start * BLOCK) :][: size - begin]
                header.stream.write(out, begin, in_range(values, header.dtype))
            return
        widths = self.widths.to(device)
        starts, units = _starts(widths), codes.view(torch.complex128)
        rows = torch.empty(len(scales), BLOCK, device=device)
        for bits, members in _buckets(widths):
            steps = torch.arange(bits, device=device)
            for start, stop in _chunks(len(members), device):
                chosen = members[start:stop]
                places = (starts[chosen].unsqueeze(1) + steps).view(-1)
                packed = units[places].view(-1, bits).view(torch.uint8)
                rows[chosen] = dequantize_blocks(unpack_blocks(packed, bits), scales[chosen], bits)
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


def check_vector(vector: Tensor) -> None:
    """Refuse what is not a vector of floating numbers (PreconditionError)."""
    if vector.dim() != 1 or not vector.is_floating_point():
        raise PreconditionError(
            f"a codec takes a floating vector, got {vector.dtype} of shape {tuple(vector.shape)}"
        )


def check_rounding(rounding: str) -> None:
    """Refuse an unknown rounding (ConfigError)."""
    if rounding not in get_args(Rounding):
        raise ConfigError(f"rounding is one of {', '.join(get_args(Rounding))}, got '{rounding}'")


def check_generator(rounding: str, generator: torch.Generator | None) -> None:
    """Refuse stochastic rounding without a generator (ConfigError)."""
    if rounding == "stochastic" and generator is None:
        raise ConfigError("stochastic rounding needs generator=…, e.g. hqde.seeding.generator(seed, 'codec')")
