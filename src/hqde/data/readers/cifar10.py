"""``cifar10:DIR``: CIFAR-10 as parquet (Hugging Face hub) or as the original python batches."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hqde.data.examples import Examples, TensorExamples
from hqde.data.readers.files import existing_folder
from hqde.data.readers.image_parquet import read_image_parquet
from hqde.data.source import Source
from hqde.errors import DataError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"

_PIXELS = 3 * 32 * 32


def read_cifar10(folder: Path) -> Source:
    """CIFAR-10 as (n, 3, 32, 32) uint8 images.

    The folder (or its sub-folder ``plain_text`` or ``cifar-10-batches-py``) holds ``train*.parquet`` and
    ``test*.parquet`` with columns ``img`` or ``image`` and ``label``, or ``data_batch_1`` … ``data_batch_5``
    and ``test_batch``.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    existing_folder(folder)
    for place in (folder, folder / "plain_text", folder / "cifar-10-batches-py"):
        if any(place.glob("train*.parquet")):
            train: Examples = _read_part(place, "train")
            return _source(train, _read_part(place, "test"))
        if any((place / name).is_file() for name in (*TRAIN_BATCHES, TEST_BATCH)):
            return _source(read_batches(place, TRAIN_BATCHES), read_batches(place, (TEST_BATCH,)))
    raise DataError(
        f"{folder} holds neither train*.parquet and test*.parquet nor {TRAIN_BATCHES[0]} … {TEST_BATCH}; "
        "give the folder of the CIFAR-10 files"
    )


def read_batches(folder: Path, names: tuple[str, ...]) -> TensorExamples:
    """Batches as they were published: pickled dicts of ``data``, (n, 3072) bytes, and ``labels``.

    Only dicts, lists, numbers, text and numpy arrays are unpickled, so that a file cannot run code.

    Raises:
        DataError: a batch is missing, truncated, of another form, or asks for anything else when unpickled.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} has no {', '.join(missing)}; it needs {', '.join(names)}")
    parts = [_read_batch(folder / name) for name in names]
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    return TensorExamples(
        torch.from_numpy(images), torch.from_numpy(np.concatenate([ids for _, ids in parts]))
    )


def _source(train: Examples, test: Examples) -> Source:
    return Source(name="cifar10", task="classification", train=train, test=test, classes=CIFAR10_CLASSES)


def _read_part(folder: Path, part: str) -> Examples:
    paths = sorted(folder.glob(f"{part}*.parquet"))
    if not paths:
        raise DataError(f"{folder} has no {part}*.parquet; it needs a training and a test file")
    examples, _, _ = read_image_parquet(paths, task="classification")
    return examples


def _read_batch(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            batch = _ArraysOnly(stream, encoding="bytes").load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(
            f"{path} ({size} bytes) is truncated or not a CIFAR-10 batch: {error or type(error).__name__}; "
            "fetch the file again"
        ) from error
    if not isinstance(batch, dict):
        raise DataError(
            f"{path} holds a {type(batch).__name__}, not a CIFAR-10 batch; check which file this is"
        )
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = entries.get("data"), entries.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise DataError(f"{path} has no 'data' of (n, {_PIXELS}) bytes; check which file this is")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path} has no list 'labels' of whole numbers; check which file this is")
    if len(labels) != len(pixels):
        raise DataError(f"{path} has {len(pixels)} images but {len(labels)} labels; fetch the file again")
    return pixels, np.array(labels, dtype=np.int64)


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes at pickle protocol 2."""
    if encoding != "latin1":
        raise DataError(f"a batch asks for the codec '{encoding}' when unpickled; only latin1 is allowed")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and plain values, and nothing that could run code."""

    _reconstruct = np.empty(0).__reduce__()[0]
    _allowed = {  # noqa: RUF012 - never changed
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The few names that an array needs."""
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        raise DataError(
            f"a batch asks for {module}.{name} when unpickled, which could run code; "
            "fetch the original CIFAR-10 python batches"
        )
