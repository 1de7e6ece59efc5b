"""Entropy stages: symbols of a chunk to bytes near their entropy, and back."""

from __future__ import annotations

import importlib
import threading
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from hqde.errors import ConfigError, MissingExtraError, PacketError

Symbols = NDArray[np.uint8]
MOST_MAGNITUDE = 127  # of a symbol; rarer ones escape
EIGHTHS = tuple(2.0 ** (-j / 8) for j in range(8))
# Probabilities travel as one byte each: 2^(-e/8). Products with powers of two are exact on every machine.
PROBABILITIES = np.array(
    [
        float(f"{EIGHTHS[e % 8]:.6f}") * 2.0 ** -(e // 8)
        for e in range(256)
    ],
    dtype=np.float32,
)  # fmt: skip


class Stage(Protocol):
    """Codes symbols: 0 to 2K are the levels -K to K, 2K + 1 is the escape."""

    stage_id: ClassVar[int]
    magnitudes: ClassVar[tuple[int, ...]]  # K to choose from

    def overhead_bits(self, most: int, count: int) -> float:
        """What ``count`` symbols cost beyond their entropy, roughly; ``most`` is K."""
        ...

    def write(self, symbols: Symbols, most: int) -> bytes:
        """Symbols ``(n,)`` as bytes."""
        ...

    def read(self, data: bytes, most: int, count: int) -> Symbols:
        """The ``count`` symbols, each at most 2K + 1. Raises PacketError."""
        ...


class Zstd:
    """Signs as bits; magnitudes several to a byte, as many as fit, through zstandard's Huffman coder.

    Signs are noise: kept apart they cost one bit and leave room for more magnitudes per byte, which is what
    lowers Huffman's loss. The search for matches finds nothing in noise either and costs bits; strategy FAST
    with matches of at least 7 bytes and a small table leaves nearly all to the Huffman coder, and still
    folds runs of zeros. Layout: length of the frame (4 bytes), the frame, the signs of what is neither 0 nor
    escaped.
    """

    stage_id: ClassVar[int] = 0
    magnitudes: ClassVar[tuple[int, ...]] = (1, 2, 4, 14, MOST_MAGNITUDE - 1)

    def overhead_bits(self, most: int, count: int) -> float:
        """Huffman's loss per byte, and its table."""
        group = per_byte(most + 2)
        return 0.045 * count / group + 5.0 * min((most + 2) ** group, 80)

    def write(self, symbols: Symbols, most: int) -> bytes:
        """Magnitudes, then signs."""
        levels = symbols.view(np.int8) - np.int8(most)  # wraps back into range; the escape becomes K + 1
        magnitudes = np.abs(levels).view(np.uint8)
        signs = np.packbits(levels[magnitudes - np.uint8(1) < most] < 0)  # what is 0 wraps to the top
        radix = most + 2
        group = per_byte(radix)
        digits = np.zeros((-(-len(symbols) // group), group), dtype=np.uint8)
        digits.reshape(-1)[: len(symbols)] = magnitudes
        packed = digits[:, 0].copy()
        for i in range(1, group):
            packed += digits[:, i] * np.uint8(radix**i)
        frame = _compressor().compress(packed.data)
        return len(frame).to_bytes(4, "little") + frame + signs.tobytes()

    def read(self, data: bytes, most: int, count: int) -> Symbols:
        """Undo ``write``; nothing is allocated before the frame's size is known to be right."""
        end = 4 + int.from_bytes(data[:4], "little")
        radix = most + 2
        group = per_byte(radix)
        packed = np.frombuffer(decompress(data[4:end], -(-count // group)), dtype=np.uint8)
        if len(packed) and packed.max() >= radix**group:
            raise PacketError(f"a byte of the packet is {packed.max()} where {radix**group - 1} is the most")
        magnitudes = packed if group == 1 else _digits(radix)[packed].reshape(-1)[:count]
        signed = np.flatnonzero(magnitudes - np.uint8(1) < most)  # what is 0 wraps to the top
        if len(data) - end != (len(signed) + 7) // 8:
            raise PacketError(f"{len(signed)} signs do not make the {len(data) - end} bytes that there are")
        signs = np.unpackbits(np.frombuffer(data[end:], dtype=np.uint8), count=len(signed))
        below = signed[signs.view(np.bool_)]
        symbols = magnitudes + np.uint8(most)
        symbols[below] = np.uint8(most) - magnitudes[below]
        return symbols


class Ans:
    """Asymmetric numeral systems, from constriction: on the entropy.

    Layout: a byte of probability per symbol of the alphabet, then the coder's words of 4 bytes.

    Source: Bamler 2022, "Understanding entropy coding with asymmetric numeral systems".
    """

    stage_id: ClassVar[int] = 1
    magnitudes: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, MOST_MAGNITUDE)

    def overhead_bits(self, most: int, count: int) -> float:  # noqa: ARG002 - as the protocol says
        """The table, and the last word."""
        return 8.0 * (2 * most + 2) + 40.0

    def write(self, symbols: Symbols, most: int) -> bytes:
        """Table, then words."""
        shares = np.bincount(symbols, minlength=2 * most + 2) / len(symbols)
        exponents = np.clip(np.rint(-8.0 * np.log2(np.maximum(shares, 2.0**-40))), 0, 255)
        table = exponents.astype(np.uint8)
        stream, model = _constriction()
        coder = stream.stack.AnsCoder()
        coder.encode_reverse(symbols.astype(np.int32), model.Categorical(PROBABILITIES[table], perfect=False))
        return table.tobytes() + coder.get_compressed().astype("<u4").tobytes()

    def read(self, data: bytes, most: int, count: int) -> Symbols:
        """Undo ``write``; altered words give other symbols, never ones that are out of range."""
        words = len(data) - 2 * most - 2
        if words < 0 or words % 4:
            raise PacketError(f"{len(data)} bytes do not hold {2 * most + 2} probabilities and words of 4")
        table = np.frombuffer(data[: 2 * most + 2], dtype=np.uint8)
        compressed = np.frombuffer(data[2 * most + 2 :], dtype="<u4").astype(np.uint32)
        stream, model = _constriction()
        try:
            coder = stream.stack.AnsCoder(compressed)
        except ValueError as broken:
            raise PacketError(f"the entropy stage cannot read the packet: {broken}") from None
        symbols: Symbols = coder.decode(model.Categorical(PROBABILITIES[table], perfect=False), count)
        return symbols.astype(np.uint8)


STAGES: dict[str, Stage] = {"zstd": Zstd(), "ans": Ans()}


def stage_of(name: str) -> Stage:
    """A stage by name.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: "ans" without constriction.

    >>> zstd = stage_of("zstd")
    >>> zstd.read(zstd.write(np.array([0, 5, 2, 3], dtype=np.uint8), 2), 2, 4)
    array([0, 5, 2, 3], dtype=uint8)
    """
    if name not in STAGES:
        raise ConfigError(f"stage is one of {', '.join(STAGES)}, got '{name}'")
    if name == "ans":
        _constriction()
    return STAGES[name]


def stage_by_id(stage_id: int) -> Stage:
    """The stage that a packet names.

    Raises:
        PacketError: an unknown one.
        MissingExtraError: one that is not installed.
    """
    for name, stage in STAGES.items():
        if stage.stage_id == stage_id:
            return stage_of(name)
    raise PacketError(f"the packet names entropy stage {stage_id}; known are 0 to {len(STAGES) - 1}")


def per_byte(radix: int) -> int:
    """How many symbols below ``radix`` fit into a byte.

    >>> [per_byte(radix) for radix in (3, 4, 6, 16, 128)]
    [5, 4, 3, 2, 1]
    """
    return next(group for group in (8, 7, 6, 5, 4, 3, 2, 1) if radix**group <= 256)


def compress(data: bytes) -> bytes:
    """Bytes that are not noise: tables, rare large numbers."""
    return zstandard.ZstdCompressor(level=3, write_checksum=False).compress(data)


def decompress(data: bytes, size: int) -> bytes:
    """A zstandard frame of exactly ``size`` bytes once decompressed.

    Raises:
        PacketError: another size, or not such a frame.
    """
    try:
        if zstandard.frame_content_size(data) != size:
            raise PacketError(f"a section of the packet does not decompress to the {size} bytes it should")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as broken:
        raise PacketError(f"a section of the packet cannot be decompressed: {broken}") from None


_of_thread = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's: two threads that use one compressor at a time spoil each other's frames."""
    if not hasattr(_of_thread, "compressor"):
        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=17, hash_log=6, write_content_size=True
        )
        _of_thread.compressor = zstandard.ZstdCompressor(compression_params=parameters)
    compressor: zstandard.ZstdCompressor = _of_thread.compressor
    return compressor


@cache
def _digits(radix: int) -> NDArray[np.uint8]:
    """``(radix^g, g)``: the symbols in each byte."""
    group = per_byte(radix)
    values = np.arange(radix**group)
    return np.stack([values // radix**i % radix for i in range(group)], axis=1).astype(np.uint8)


def _constriction() -> tuple[Any, Any]:
    try:
        package = importlib.import_module("constriction")
    except ImportError:
        raise MissingExtraError("the entropy stage 'ans'", extra="ans") from None
    return package.stream, package.stream.model
