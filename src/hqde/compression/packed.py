"""Fixed-width codes in blocks of 128: quick, cut anywhere, with bits where they help most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from hqde.compression.allocation import allocate_bits, check_bits, linear_bits
from hqde.compression.header import Header, begin, check_vector, finish, refuse_nonfinite, scale_dense, seal
from hqde.compression.importance import Importance, block_spread, check_importance
from hqde.compression.packed_body import PACKED_ID, UNIT, buckets, chunk_blocks, chunks, starts
from hqde.compression.packet import Packet
from hqde.compression.packing import BLOCK, pack, pack_blocks
from hqde.compression.quantize import Rounding, check_generator, check_rounding, quantize_levels
from hqde.compression.ranges import Range, Stream, as_ranges
from hqde.errors import ConfigError, NonFiniteError

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

    Source: block floating point with searched scales; see ``quantize_levels`` and ``allocate_bits``.
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
            header = Header(PACKED_ID, vector.dtype, stream, scales)
            widths = self._widths(stream, vector, gradient)
            if isinstance(widths, int):
                return _encode_uniform(header, values, blocks, widths, self.rounding, generator)
            body = _encode_mixed(blocks, widths, self.rounding, generator)
        except NonFiniteError:
            refuse_nonfinite(vector)  # in numbers of the whole vector
            raise
        return Packet(seal(header, values, body))

    def _widths(self, stream: Stream, vector: Tensor, gradient: Tensor | None) -> int | Tensor:
        """One width for all blocks, or ``(num_blocks,)`` uint8."""
        if self.allocation == "uniform" or self.min_bits == self.max_bits or not stream.size:
            return int(self.bits)
        spread = block_spread(
            self.importance, stream.read(vector, 0, stream.size), stream.read_gradient(gradient)
        )
        if self.allocation == "adaptive":
            widths = allocate_bits(spread, self.bits, self.min_bits, self.max_bits)
        else:
            score = spread.sqrt()
            score = score / score.amax().clamp(min=1e-30)
            widths = linear_bits(score, self.min_bits, self.max_bits, average_bits=self.bits)
        low, high = (int(bound) for bound in torch.aminmax(widths))
        return low if low == high else widths


def encode_with_widths(vector: Tensor, widths: Tensor) -> tuple[Packet, Tensor]:
    """A packet whose blocks have widths that somebody else chose.

    Args:
        vector: ``(n,)`` floating, finite.
        widths: ``(ceil(n / 128),)`` uint8 in 1 to 16, on the vector's device.

    Returns:
        the packet, and the scales ``(ceil(n / 128),)`` bfloat16.

    Raises:
        NonFiniteError: values that are NaN, infinite or beyond float32.

    Example:
        >>> packet, scales = encode_with_widths(torch.ones(256), torch.tensor([4, 8], dtype=torch.uint8))
        >>> packet.nbytes - 36, len(scales)
        (213, 2)
    """
    check_vector(vector)
    stream = Stream(len(vector))
    header, dense = Header(PACKED_ID, vector.dtype, stream), torch.empty(0, dtype=torch.float16)
    if not stream.size:
        packet = _encode_uniform(header, dense, _Blocks(stream, vector), 1, "nearest", None)
        return packet, torch.empty(0, dtype=torch.bfloat16)
    body = _encode_mixed(_Blocks(stream, vector.detach()), widths, "nearest", None)
    return Packet(seal(header, dense, body)), body[1].view(torch.bfloat16)


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
    header: Header,
    dense_values: Tensor,
    blocks: _Blocks,
    bits: int,
    rounding: Rounding,
    generator: torch.Generator | None,
) -> Packet:
    device, end = blocks.vector.device, blocks.num * UNIT * bits
    payload = begin(header, dense_values, end + 2 * blocks.num + 1)
    body = payload[header.body_at :]
    packed, scales = body[:end].view(-1, UNIT * bits), body[end:-1].view(torch.bfloat16)
    body[-1] = bits
    workspace = torch.empty(3, min(blocks.num, chunk_blocks(device)), BLOCK, device=device)
    for start, stop in chunks(blocks.num, device):
        codes, scales[start:stop] = quantize_levels(
            blocks.rows(start, stop), bits, rounding=rounding, generator=generator, workspace=workspace
        )
        packed[start:stop] = pack_blocks(codes, bits, overwrite=True)
    return Packet(finish(payload))


def _encode_mixed(
    blocks: _Blocks, widths: Tensor, rounding: Rounding, generator: torch.Generator | None
) -> list[Tensor]:
    device = blocks.vector.device
    begins = starts(widths)
    units = torch.empty(int(begins[-1]), dtype=torch.complex128, device=device)  # 16 bytes each
    scales = torch.empty(blocks.num, dtype=torch.bfloat16, device=device)
    full = blocks.stream.size // BLOCK
    rows, last = blocks.rows(0, full), blocks.rows(full, blocks.num)  # the last one may have to be filled up
    workspace = torch.empty(3, min(blocks.num, chunk_blocks(device)), BLOCK, device=device)
    for bits, members in buckets(widths):
        steps = torch.arange(bits, device=device)
        for start, stop in chunks(len(members), device):
            chosen = members[start:stop]
            inside = chosen[:-1] if int(chosen[-1]) == full else chosen
            picked = rows.index_select(0, inside)
            if len(inside) < len(chosen):
                picked = torch.cat([picked, last])
            codes, scales[chosen] = quantize_levels(
                picked, bits, rounding=rounding, generator=generator, workspace=workspace
            )
            places = (begins[chosen].unsqueeze(1) + steps).view(-1)
            units[places] = pack_blocks(codes, bits, overwrite=True).view(torch.complex128).view(-1)
    return [
        units.view(torch.float64).view(torch.uint8),
        scales.view(torch.uint8),
        pack((widths - 1).cpu(), 4),
        torch.zeros(1, dtype=torch.uint8),
    ]
