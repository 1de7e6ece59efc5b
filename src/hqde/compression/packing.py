"""Small integers as bytes, without a wasted bit: planes of 8, 4, 2 and 1 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.errors import PreconditionError

BLOCK = 128  # codes that share one scale and one width


def pack(codes: Tensor, bits: int) -> Tensor:
    """Write whole numbers below 2^bits one behind the other.

    The code's low 8 bits (if there are so many) make the first plane, then come planes of 4, 2 and 1 bits of
    what is left. A plane of w bits holds 8/w codes per byte: byte j has those at j, j + m·w/8, j + 2m·w/8, …
    where m is the number of codes rounded up to 8.

    Args:
        codes: ``(n,)`` integers in [0, 2^bits), on any device.
        bits: 1 to 16.

    Returns:
        ``(ceil(n / 8) * bits,)`` uint8 on the same device.

    Raises:
        PreconditionError: another number of bits, or codes that are not a vector of integers.

    Example:
        >>> pack(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1)
        tensor([19,  2], dtype=torch.uint8)
        >>> unpack(pack(torch.tensor([5, 7, 2]), 3), 3, 3)
        tensor([5, 7, 2])
    """
    _check_bits(bits)
    if codes.dim() != 1 or codes.is_floating_point() or codes.is_complex():
        raise PreconditionError(
            f"pack takes a vector of integers, got {codes.dtype} of shape {tuple(codes.shape)}"
        )
    padded = -len(codes) % 8
    rows = codes.to(torch.uint8 if bits <= 8 else torch.int32)
    if padded:
        rows = torch.cat([rows, rows.new_zeros(padded)])
    return pack_blocks(rows.unsqueeze(0), bits).reshape(-1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The codes that ``pack`` wrote.

    Args:
        packed: ``(ceil(count / 8) * bits,)`` uint8.
        bits: as given to ``pack``.
        count: number of codes.

    Returns:
        ``(count,)`` int64 on the same device.

    Raises:
        PreconditionError: another number of bits, or bytes that are too many or too few.
    """
    _check_bits(bits)
    size = (count + 7) // 8 * 8
    if packed.dtype != torch.uint8 or packed.dim() != 1 or count < 0 or len(packed) != size // 8 * bits:
        raise PreconditionError(
            f"{count} codes of {bits} bits are {max(size, 0) // 8 * bits} bytes, "
            f"got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    return unpack_blocks(packed.unsqueeze(0), bits, size).reshape(-1)[:count].long()


def pack_blocks(codes: Tensor, bits: int, *, overwrite: bool = False) -> Tensor:
    """Pack every row by itself; a row of 128 codes becomes exactly 16 · bits bytes.

    Args:
        codes: ``(n, m)`` uint8 for up to 8 bits, else int32, or float32 for any; m a multiple of 8; whole
            numbers in [0, 2^bits).
        bits: 1 to 16.
        overwrite: float32 codes may be used as working memory.

    Returns:
        ``(n, m * bits / 8)`` uint8.

    Example:
        >>> pack_blocks(torch.full((3, 128), 5, dtype=torch.uint8), 3).shape
        torch.Size([3, 48])
    """
    num_rows, size = codes.shape
    if codes.dtype == torch.float32:
        if bits in (1, 2, 4):  # one plane: add it up first, and have fewer numbers to convert
            part, radix = size * bits // 8, 2.0**bits
            folded = codes[:, :part] if overwrite else codes[:, :part].clone()
            for i in range(1, 8 // bits):
                folded.add_(codes[:, i * part : (i + 1) * part], alpha=radix**i)
            return folded.to(torch.uint8)
        codes = codes.to(torch.uint8 if bits <= 8 else torch.int32)
    if bits == 8:
        return codes.contiguous()
    packed = codes.new_empty((num_rows, size * bits // 8), dtype=torch.uint8)
    for shift, width, start, stop in _planes(bits, size):
        target = packed[:, start:stop]
        plane = codes if shift == 0 else codes >> shift
        if shift + width < bits:  # what lies above belongs to another plane
            plane = plane & (2**width - 1)
        if width == 8:
            target.copy_(plane)
            continue
        plane = plane.to(torch.uint8)
        part = stop - start
        target.copy_(plane[:, :part])
        for i in range(1, 8 // width):
            target.bitwise_or_(plane[:, i * part : (i + 1) * part] << (width * i))
    return packed


def unpack_blocks(packed: Tensor, bits: int, size: int = BLOCK) -> Tensor:
    """Undo ``pack_blocks``.

    Args:
        packed: ``(n, size * bits / 8)`` uint8.
        bits: 1 to 16.
        size: codes per row, a multiple of 8.

    Returns:
        ``(n, size)`` uint8 for up to 8 bits, else int32; it may share memory with ``packed``.
    """
    if bits == 8:
        return packed
    codes = packed.new_empty((len(packed), size), dtype=torch.uint8 if bits < 8 else torch.int32)
    for shift, width, start, stop in _planes(bits, size):
        plane, part = packed[:, start:stop], stop - start
        for i in range(8 // width):
            target = codes[:, i * part : (i + 1) * part]
            piece = plane >> (width * i) if i else plane
            if width * (i + 1) < 8:
                piece = piece & (2**width - 1)
            if shift == 0:
                target.copy_(piece)
            else:
                target.bitwise_or_(piece.to(codes.dtype) << shift)
    return codes


def _planes(bits: int, size: int) -> list[tuple[int, int, int, int]]:
    """Shift and width of every plane, and where its bytes stand in a row of ``size`` codes."""
    planes, shift, start = [], 0, 0
    for width in (8, 8, 4, 2, 1):
        if bits - shift >= width:
            stop = start + size * width // 8
            planes.append((shift, width, start, stop))
            shift, start = shift + width, stop
    return planes


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise PreconditionError(f"the packer takes 1 to 16 bits, got {bits}")
