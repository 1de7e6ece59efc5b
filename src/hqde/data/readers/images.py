"""Decoding JPEG, PNG and the like into one uint8 tensor."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hqde.data.readers.files import load_pillow
from hqde.errors import DataError

_CHUNK = 256
_THREADED_BYTES = 16 * 2**10  # below this size an image decodes faster than threads hand over the interpreter
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def decode_images(encoded: Sequence[bytes | Path], *, describe: Callable[[int], str]) -> Tensor:
    """All images as one (n, c, h, w) uint8 tensor: c = 1 if every one is grey, else 3 (RGB).

    Args:
        encoded: file contents or paths.
        describe: position to a name for errors.

    Raises:
        DataError: an image cannot be decoded, has more than 8 bits per channel, or they differ in size.
        MissingExtraError: pillow is not installed.
    """
    if not encoded:
        return torch.empty(0, 1, 0, 0, dtype=torch.uint8)
    images = _decode_all(encoded, describe=describe)
    first = next(images)
    height, width = first.shape[:2]
    sizes: Counter[tuple[int, int]] = Counter({(width, height): 1})
    odd = ""
    out = torch.empty(len(encoded), 1 if first.ndim == 2 else 3, height, width, dtype=torch.uint8)
    pixels = out.numpy()
    _put(pixels, 0, first)
    for position, image in enumerate(images, start=1):
        size = (image.shape[1], image.shape[0])
        sizes[size] += 1
        if size != (width, height):
            odd = odd or describe(position)
            continue
        if image.ndim == 3 and pixels.shape[1] == 1:  # the first colour image after grey ones
            out = out.expand(-1, 3, -1, -1).contiguous()
            pixels = out.numpy()
        _put(pixels, position, image)
    if len(sizes) > 1:
        shown = ", ".join(f"{w}×{h} ({count} images)" for (w, h), count in sizes.most_common(5))
        raise DataError(f"images differ in size: {shown}; first odd one: {odd}; bring all to one size")
    return out


def _put(pixels: npt.NDArray[np.uint8], position: int, image: npt.NDArray[np.uint8]) -> None:
    """Channels first; a grey image fills every channel there is."""
    pixels[position] = image if image.ndim == 2 else image.transpose(2, 0, 1)


def _decode_all(
    encoded: Sequence[bytes | Path], *, describe: Callable[[int], str]
) -> Iterator[npt.NDArray[np.uint8]]:
    pillow = load_pillow()

    def decode(start: int) -> list[npt.NDArray[np.uint8]]:
        return [
            _decode(pillow, encoded[position], describe(position))
            for position in range(start, min(start + _CHUNK, len(encoded)))
        ]

    starts = range(0, len(encoded), _CHUNK)
    first = encoded[0]
    num_bytes = len(first) if isinstance(first, bytes) else first.stat().st_size
    num_threads = min(8, os.cpu_count() or 1)
    if num_bytes < _THREADED_BYTES or num_threads == 1 or len(starts) == 1:
        for start in starts:
            yield from decode(start)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for wave in range(0, len(starts), num_threads):  # waves bound the memory of what is decoded ahead
            for images in pool.map(decode, starts[wave : wave + num_threads]):
                yield from images


def _decode(pillow: Any, encoded: bytes | Path, name: str) -> npt.NDArray[np.uint8]:
    """(h, w) of a grey image or (h, w, 3)."""
    try:
        with pillow.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            if image.mode in _DEEP_MODES:
                raise DataError(
                    f"{name} has mode {image.mode}, more than 8 bits per channel; convert it to 8 bits"
                )
            mode = "L" if image.mode in ("L", "1", "LA") else "RGB"
            return np.asarray(image if image.mode == mode else image.convert(mode))
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be decoded as an image: {error}; replace it") from error
