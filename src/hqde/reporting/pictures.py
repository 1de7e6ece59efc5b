"""The examples that the ensemble was least sure of, as pictures or as rows of features."""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from dataclasses import dataclass

from markupsafe import Markup

from hqde.errors import RunError
from hqde.reporting.document import Document
from hqde.reporting.record import RunRecord
from hqde.reporting.scales import percent, short

MOST_EXAMPLES = 24
MOST_FEATURES = 8
LONGEST_SIDE = 96  # pixels; larger pictures are thinned, which keeps the page small
PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> PNG colour type: grey, grey+alpha, RGB, RGBA


@dataclass(frozen=True)
class UncertainExample:
    """One example for the page; ``None`` where a figure was not recorded.

    Uncertainties are nats for classes, and variances in squared target units for regression.
    """

    index: int
    target: str
    predicted: str
    right: bool | None
    probability: str
    total: float | None
    aleatoric: float | None
    epistemic: float | None
    picture: Markup | None
    features: str

    @property
    def spread(self) -> str:
        """The predicted standard deviation, in target units."""
        return "" if self.total is None or self.total < 0 else short(math.sqrt(self.total), 2)

    @property
    def epistemic_share(self) -> float | None:
        """The part of the total that the members' disagreement makes up, in per cent."""
        if not self.total or self.epistemic is None:
            return None
        return min(max(100 * self.epistemic / self.total, 0.0), 100.0)


def uncertain_examples(record: RunRecord) -> list[UncertainExample]:
    """The examples in ``evaluation.json``, at most ``MOST_EXAMPLES``, least sure first."""
    rows = record.evaluation.documents("uncertain")[:MOST_EXAMPLES] if record.evaluation else []
    pictures = [_pixels(image) if (image := row.document("image")) is not None else None for row in rows]
    brightest = max((max(pixels, default=0) for shape, pixels in filter(None, pictures)), default=0)
    # Some data count brightness from 0 to 16 or so: stretched alike for all, they can be seen.
    stretch = 255 // brightest if 0 < brightest <= 127 else 1
    return [_example(record, row, found, stretch) for row, found in zip(rows, pictures, strict=True)]


def _example(
    record: RunRecord, row: Document, found: tuple[tuple[int, int, int], bytes] | None, stretch: int
) -> UncertainExample:
    target, predicted = row.number("target"), row.number("predicted")
    classification = record.task == "classification"
    picture = None
    if found is not None:
        shape, pixels = found
        pixels = pixels.translate(bytes(min(255, value * stretch) for value in range(256)))
        picture = (
            Markup("data:image/png;base64,") + base64.b64encode(encode_png(*_thinned(shape, pixels))).decode()
        )
    features = row.items("features")
    shown = [
        short(value) if isinstance(value, int | float) else str(value) for value in features[:MOST_FEATURES]
    ]
    more = len(features) - len(shown)
    return UncertainExample(
        index=row.count("index"),
        target=record.class_name(target) if classification else short(target),
        predicted=record.class_name(predicted) if classification else short(predicted),
        right=target == predicted if classification else None,
        probability=percent(row.number("probability"), 0) if row.number("probability") is not None else "",
        total=row.number("total"),
        aleatoric=row.number("aleatoric"),
        epistemic=row.number("epistemic"),
        picture=picture,
        features=", ".join(shown) + (f", … {more} more" if more > 0 else ""),
    )


def _pixels(image: Document) -> tuple[tuple[int, int, int], bytes]:
    """Height, width, channels and the raw bytes, row by row."""
    sizes = image.items("shape")
    if len(sizes) == 2:
        sizes = [*sizes, 1]
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise RunError(f"{image.where}: shape must be [height, width, channels], got {sizes}.")
    height, width, channels = sizes
    try:
        pixels = base64.b64decode(image.text("pixels"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RunError(f"{image.where}: pixels are not base64: {error}.") from error
    if len(pixels) != math.prod(sizes):
        raise RunError(
            f"{image.where}: {height}x{width}x{channels} pixels take {math.prod(sizes)} bytes, "
            f"got {len(pixels)}."
        )
    return (height, width, channels), pixels


def _thinned(shape: tuple[int, int, int], pixels: bytes) -> tuple[tuple[int, int, int], bytes]:
    """Every k-th pixel of a large picture, and its first three channels where there are more than four."""
    height, width, channels = shape
    step, kept = -(-max(height, width) // LONGEST_SIDE), channels if channels in PNG_COLOUR else 3
    if step == 1 and kept == channels:
        return shape, pixels
    rows, columns = range(0, height, step), range(0, width, step)
    starts = ((r * width + c) * channels for r in rows for c in columns)
    return (len(rows), len(columns), kept), b"".join(pixels[at : at + kept] for at in starts)


def encode_png(shape: tuple[int, int, int], pixels: bytes) -> bytes:
    """Raw 8-bit pixels as a PNG file.

    Args:
        shape: height, width, channels (1 grey, 2 grey + alpha, 3 RGB, 4 RGBA).
        pixels: height * width * channels bytes, row by row.

    Source: W3C, "Portable Network Graphics (PNG) Specification", 2nd edition, sections 5 and 11.

    >>> encode_png((1, 1, 3), bytes([255, 0, 0]))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    height, width, channels = shape
    stride = width * channels

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR[channels], 0, 0, 0)
    lines = b"".join(b"\x00" + pixels[row * stride : (row + 1) * stride] for row in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )
