"""``fashion-mnist:DIR``: a folder of IDX files, plain or gzipped.

An IDX file is a 4-byte magic number (two zeros, the type of the numbers, how many dimensions), each dimension
as a big-endian 32-bit number, then the numbers row by row.
Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from hqde.data.examples import TensorExamples
from hqde.data.readers.files import existing_folder, first_file
from hqde.data.source import Source
from hqde.errors import DataError

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_UINT8 = 0x08
_READ_BYTES = 2**20


def read_fashion_mnist(folder: Path) -> Source:
    """Fashion-MNIST as (n, 1, 28, 28) uint8 images, from its four files as they are published.

    Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", 2017.
    """
    existing_folder(folder)
    return Source(
        name="fashion-mnist",
        task="classification",
        train=_read_pair(folder, "train"),
        test=_read_pair(folder, "t10k"),
        classes=FASHION_CLASSES,
    )


def read_idx(path: Path, *, num_dimensions: int) -> Tensor:
    """One IDX file of bytes as a uint8 tensor.

    Args:
        path: plain, or gzipped if the name ends in ``.gz``.
        num_dimensions: 1 for labels, 3 for images.

    Raises:
        DataError: wrong magic number, truncated (bytes expected and found), or trailing bytes.
    """
    with path.open("rb") as plain:
        stream: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain
        header_size = 4 + 4 * num_dimensions
        header, damage = _read(stream, header_size)
        expected_magic = bytes([0, 0, _UINT8, num_dimensions])
        if len(header) == header_size and header[:4] != expected_magic:
            raise DataError(
                f"{path} is not an IDX file of {num_dimensions}-dimensional bytes: it begins with "
                f"0x{header[:4].hex()}, expected 0x{expected_magic.hex()}; check which file this is"
            )
        if len(header) < header_size:
            raise DataError(_truncated(path, header_size, len(header), damage))
        shape = struct.unpack(f">{num_dimensions}I", header[4:])
        expected = prod(shape)
        content, damage = _read(stream, expected + 1)
    if len(content) > expected:
        raise DataError(
            f"{path} has bytes beyond the {header_size + expected} that its header announces; "
            "fetch the file again"
        )
    if damage is not None or len(content) < expected:
        raise DataError(
            _truncated(path, header_size + expected, header_size + len(content), damage)
        ) from damage
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).reshape(shape))


def _read_pair(folder: Path, prefix: str) -> TensorExamples:
    images_path = first_file(folder, _names(f"{prefix}-images", 3))
    labels_path = first_file(folder, _names(f"{prefix}-labels", 1))
    images, labels = read_idx(images_path, num_dimensions=3), read_idx(labels_path, num_dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path.name} has {len(images)} images but {labels_path.name} {len(labels)} labels; "
            "take both from the same data set"
        )
    return TensorExamples(images.unsqueeze(1), labels)


def _names(stem: str, num_dimensions: int) -> list[str]:
    plain = [f"{stem}{mark}idx{num_dimensions}-ubyte" for mark in "-."]
    return [name + suffix for name in plain for suffix in ("", ".gz")]


def _read(stream: IO[bytes] | gzip.GzipFile, num_bytes: int) -> tuple[bytearray, Exception | None]:
    """Up to ``num_bytes``, and what ended the reading early if the stream is damaged.

    Piece by piece, so that a header that announces nonsense costs no memory.
    """
    content = bytearray()
    try:
        while len(content) < num_bytes:
            piece = stream.read(min(_READ_BYTES, num_bytes - len(content)))
            if not piece:
                break
            content += piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return content, error
    return content, None


def _truncated(path: Path, expected: int, found: int, damage: Exception | None) -> str:
    reason = f" ({damage})" if damage is not None else ""
    return (
        f"{path} is truncated or damaged: expected {expected} bytes of content, found {found}{reason}; "
        "fetch the file again"
    )
