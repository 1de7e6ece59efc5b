"""One chunk of 65,536 quantised values as bytes that can be read without any other chunk."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqde.compression.packing import BLOCK
from hqde.compression.quantize import FLOAT32_MAX
from hqde.compression.stages import MOST_MAGNITUDE, Stage, compress, decompress
from hqde.compression.steps import ESCAPE_BITS
from hqde.errors import PacketError

CHUNK = 2**16
CENTROIDS = 8  # magnitudes with a centroid of their own; one more serves all above
HEAD = 1 + 4 + CENTROIDS + 1
ESCAPE_LIMIT = 2**24  # above every magnitude
MOST_CLASSES = 8
LEAST_BLOCKS = 8  # of a class; smaller ones join the next
# A block's step is 2^(e / 4 - 32) of the packet's; products with powers of two are exact on every machine.
FACTORS = torch.tensor(
    [float(f"{2.0 ** (e % 4 / 4):.6f}") * 2.0 ** (e // 4 - 32) for e in range(256)], dtype=torch.float32
)


def write_chunk(levels: Tensor, magnitudes: Tensor | None, stage: Stage) -> bytes:
    """Levels and what they stand for.

    Where the mean magnitude differs from block to block, the blocks are sorted into classes of a factor 2,
    each with a distribution and centroids of its own. Layout: number of classes; with two or more, the
    length (4 bytes) of the compressed list of the blocks' classes, the list, and the length of each class's
    part; parts.

    Args:
        levels: ``(n,)`` float32 whole numbers, |level| < 2^24, n <= 65,536, on the CPU.
        magnitudes: ``(n,)`` float32 in steps, for the centroids; without them levels stand for themselves.
        stage: codes the symbols.
    """
    rows = _in_blocks(levels)
    own = None if magnitudes is None else _in_blocks(magnitudes)
    classes = _classes(rows, stage)
    if classes is None:
        return b"\x01" + _write_part(rows, own, stage)
    parts = []
    for kind in range(int(classes.max()) + 1):
        chosen = torch.from_numpy(np.flatnonzero(classes == kind))
        parts.append(_write_part(rows[chosen], None if own is None else own[chosen], stage))
    listed = compress(classes.tobytes())
    sizes = np.array([len(listed), *(len(part) for part in parts)], dtype="<u4").tobytes()
    return bytes([len(parts)]) + sizes + listed + b"".join(parts)


def read_chunk(data: bytes, count: int, step: float, stage: Stage) -> Tensor:
    """The values that a chunk stands for, before block factors.

    Args:
        data: from ``write_chunk``.
        count: number of values, at most 65,536.
        step: of the packet.
        stage: as it was written.

    Returns:
        ``(count,)`` float32, finite.

    Raises:
        PacketError: bytes that no ``write_chunk`` wrote.
    """
    num_blocks = -(-count // BLOCK)
    kinds = data[0] if data else 0
    if kinds == 1:
        return _read_part(data[1:], num_blocks, step, stage).view(-1)[:count]
    at = 5 + 4 * kinds
    sizes = np.frombuffer(data[1:at], dtype="<u4").tolist() if len(data) >= at else []
    if not 1 <= kinds <= MOST_CLASSES or len(data) != at + sum(sizes):
        raise PacketError(f"a chunk of {len(data)} bytes does not have {kinds} classes of {sizes} bytes")
    classes = np.frombuffer(decompress(data[at : at + sizes[0]], num_blocks), dtype=np.uint8)
    if len(classes) and classes.max() >= kinds:
        raise PacketError(f"a block of the packet has class {classes.max()}, there are {kinds}")
    rows, at = torch.empty(num_blocks, BLOCK), at + sizes[0]
    for kind, size in enumerate(sizes[1:]):
        chosen = torch.from_numpy(np.flatnonzero(classes == kind))
        rows[chosen] = _read_part(data[at : at + size], len(chosen), step, stage)
        at += size
    return rows.view(-1)[:count]


def write_factors(exponents: Tensor) -> bytes:
    """The blocks' step factors, one byte each, compressed."""
    return compress(exponents.numpy().tobytes())


def read_factors(data: bytes, count: int) -> Tensor:
    """Step factors ``(ceil(count / 128),)`` float32 of a chunk's blocks. Raises PacketError."""
    raw = decompress(data, -(-count // BLOCK))
    return FACTORS[torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()]


def _in_blocks(values: Tensor) -> Tensor:
    missing = -len(values) % BLOCK
    return (torch.cat([values, values.new_zeros(missing)]) if missing else values).view(-1, BLOCK)


def _classes(rows: Tensor, stage: Stage) -> NDArray[np.uint8] | None:
    """Which class each block belongs to, small magnitudes first; None where one for all costs no more."""
    means = rows.abs().mean(dim=1).numpy().astype(np.float64)
    found, orders = np.unique(np.floor(np.log2(np.maximum(means, 2.0**-6))), return_inverse=True)
    if len(found) == 1:
        return None
    joins = _joined(np.bincount(orders).tolist())
    classes = joins[orders]
    numbers = np.bincount(classes)
    if len(numbers) == 1:
        return None
    # Entropy of a geometric distribution with each mean: what the classes save beside what they cost.
    of_classes = np.bincount(classes, weights=means) / numbers
    saved = geometric_entropy(means.mean()) - (geometric_entropy(of_classes) * numbers).sum() / len(rows)
    size = rows.numel()
    cost = 8.0 * len(compress(classes.tobytes()))
    cost += (len(numbers) - 1) * (stage.overhead_bits(4, 0) + 8 * (HEAD + 4))
    return classes if saved * size > cost else None


def _joined(numbers: list[int]) -> NDArray[np.uint8]:
    """Which class each order of magnitude goes to: none has fewer blocks than are worth a table."""
    joins, kept, waiting = np.zeros(len(numbers), dtype=np.uint8), 0, 0
    for index, number in enumerate(numbers):
        joins[index] = kept
        waiting += number
        if waiting >= LEAST_BLOCKS and kept < MOST_CLASSES - 1:
            kept, waiting = kept + 1, 0
    if waiting < LEAST_BLOCKS and kept:  # the last ones are too few
        joins[joins == kept] = kept - 1
    return joins


def geometric_entropy(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits per magnitude of geometric distributions with these means."""
    safe = np.maximum(means, 1e-9)
    return (1.0 + safe) * np.log2(1.0 + safe) - safe * np.log2(safe)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits that so many symbols of each kind have together."""
    some = counts[counts > 0].astype(np.float64)
    return -float((some * np.log2(some / some.sum())).sum())


def _write_part(rows: Tensor, magnitudes: Tensor | None, stage: Stage) -> bytes:
    """Blocks with one distribution.

    A byte with the largest magnitude K that has a symbol; the length of the escapes (4 bytes); the offsets of
    the centroids of magnitudes 1 to 8 and of those above, in 1/256 of a step; the escaped levels; the
    symbols.
    """
    values = rows.reshape(-1).to(torch.int32)
    sizes = values.abs()
    counts = torch.bincount(sizes.clamp(max=MOST_MAGNITUDE + 1), minlength=MOST_MAGNITUDE + 2).numpy()
    most = _best_magnitude(counts, stage)
    shifted = values + most
    rare = b""
    if counts[most + 1 :].any():
        outside = sizes > most
        escaped = values[outside].numpy()
        zigzag = ((escaped << 1) ^ (escaped >> 31)).astype("<u4")
        # By planes of bytes: the high ones are zeros.
        rare = compress(zigzag.view(np.uint8).reshape(-1, 4).T.tobytes())
        shifted[outside] = 2 * most + 1
    offsets = bytes(CENTROIDS + 1) if magnitudes is None else _offsets(magnitudes.reshape(-1), sizes, counts)
    symbols = stage.write(shifted.to(torch.uint8).numpy(), most)
    return bytes([most]) + len(rare).to_bytes(4, "little") + offsets + rare + symbols


def _read_part(data: bytes, num_blocks: int, step: float, stage: Stage) -> Tensor:
    """``(num_blocks, 128)`` float32."""
    if len(data) < HEAD or not 1 <= data[0] <= MOST_MAGNITUDE:
        raise PacketError(f"a part of {len(data)} bytes is too short or has a broken head")
    most, num_rare = data[0], int.from_bytes(data[1:5], "little")
    if num_rare > len(data) - HEAD:
        raise PacketError(f"{num_rare} bytes of escapes do not fit into a part of {len(data)}")
    offsets = np.frombuffer(data[5:HEAD], dtype=np.int8).astype(np.float64) / 256
    symbols = stage.read(data[HEAD + num_rare :], most, num_blocks * BLOCK)
    magnitudes = np.arange(most + 1, dtype=np.float64)
    magnitudes[1:] += offsets[np.minimum(np.arange(most), CENTROIDS)]
    table = np.concatenate([-magnitudes[:0:-1], magnitudes, [0.0]])  # the last is the escape
    values = _as_float32(table * step)[symbols]
    rare = data[HEAD : HEAD + num_rare]
    outside = np.flatnonzero(symbols == 2 * most + 1)
    if len(outside) or rare:
        planes = np.frombuffer(decompress(rare, 4 * len(outside)), dtype=np.uint8)
        zigzag = planes.reshape(4, -1).T.copy().view("<u4").reshape(-1).astype(np.int64)
        levels = (zigzag >> 1) ^ -(zigzag & 1)
        if len(levels) and np.abs(levels).max() > ESCAPE_LIMIT:
            raise PacketError(f"an escaped level is {np.abs(levels).max()}, above {ESCAPE_LIMIT}")
        sizes = np.abs(levels)
        stands = np.sign(levels) * (sizes + offsets[np.clip(sizes, 1, CENTROIDS + 1) - 1])
        values[outside] = _as_float32(stands * step)
    return torch.from_numpy(values).view(num_blocks, BLOCK)


def _offsets(magnitudes: Tensor, sizes: Tensor, counts: NDArray[np.int64]) -> bytes:
    """Where in its cell each level's magnitudes lie on average, in 1/256 of a step: 1 to 8, and all above."""
    classes = sizes.clamp(max=CENTROIDS + 1)
    sums = torch.bincount(classes, weights=magnitudes - sizes, minlength=CENTROIDS + 2)[1:].numpy()
    numbers = np.append(counts[1 : CENTROIDS + 1], counts[CENTROIDS + 1 :].sum())
    return np.clip(np.rint(sums / np.maximum(numbers, 1) * 256), -127, 127).astype(np.int8).tobytes()


def _best_magnitude(counts: NDArray[np.int64], stage: Stage) -> int:
    """The largest magnitude worth a symbol: all above escape."""
    used = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
    total = int(counts.sum())
    best, least = stage.magnitudes[0], float("inf")
    for most in stage.magnitudes:
        escaped = int(counts[most + 1 :].sum())
        bits = _entropy(np.append(counts[: most + 1], escaped)) + float(counts[1 : most + 1].sum())
        bits += ESCAPE_BITS * escaped + stage.overhead_bits(most, total)
        if bits < least:
            best, least = most, bits
        if most >= used:
            break
    return best


def _as_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.clip(values, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
