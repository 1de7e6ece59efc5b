"""``FILE.npz``: numpy arrays, one pair of inputs and targets or a training and a test pair."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hqde.data.examples import Task, TensorExamples
from hqde.data.readers.columns import as_features, encode_targets
from hqde.data.readers.files import existing_file
from hqde.data.source import Source
from hqde.errors import DataError

INPUT_NAMES = ("x", "data", "images", "inputs")
TARGET_NAMES = ("y", "labels", "label", "targets", "target")

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # what zip writes before each member (PKWARE APPNOTE 4.3.7)
_LIST_HEADER = struct.Struct("<4s6H3I5H2I")  # what it writes per member in the list at the end (4.3.12)
_END_RECORD_BYTES = 22
_SIZE_IN_EXTRA = 0xFFFFFFFF


def read_npz(path: Path, *, task: Task | None = None) -> Source:
    """Arrays of an ``.npz`` file, by name whatever the case.

    ``x_train, y_train, x_test, y_test`` (the test pair may be missing), or one pair such as ``x, y`` or
    ``data, labels``. Objects (pickles) inside are refused. What targets mean, `encode_targets` says.

    Raises:
        DataError: missing, truncated, no such arrays, or arrays of different length.
    """
    arrays = {name.lower(): array for name, array in _load(existing_file(path)).items()}
    in_parts = any(name.endswith("_train") for name in arrays)
    inputs, targets = _pair(arrays, "_train" if in_parts else "", path=path)
    num_train = len(targets)
    test_inputs = None
    if in_parts and any(name.endswith("_test") for name in arrays):
        test_inputs, test_targets = _pair(arrays, "_test", path=path)
        targets = np.concatenate([targets, test_targets])  # read as one, so that a word is one class in both
    encoded, found, classes = encode_targets(targets, task=task, what=f"targets of {path}")
    return Source(
        name=path.stem,
        task=found,
        train=TensorExamples(as_features(inputs, what=f"inputs of {path}"), encoded[:num_train]),
        test=None
        if test_inputs is None
        else TensorExamples(as_features(test_inputs, what=f"test inputs of {path}"), encoded[num_train:]),
        classes=classes,
    )


def read_npz_inputs(path: Path) -> Tensor:
    """The inputs of an ``.npz`` file that need not have targets; the test part if it has one."""
    arrays = {name.lower(): array for name, array in _load(existing_file(path)).items()}
    suffix = next((end for end in ("_test", "_train") if any(name.endswith(end) for name in arrays)), "")
    name = _pick(arrays, INPUT_NAMES, suffix, path=path)
    return as_features(arrays[name], what=f"'{name}' of {path}")


def _pair(
    arrays: dict[str, npt.NDArray[Any]], suffix: str, *, path: Path
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Inputs and targets whose names end in ``suffix``, of equal length."""
    names = [_pick(arrays, wanted, suffix, path=path) for wanted in (INPUT_NAMES, TARGET_NAMES)]
    inputs, targets = (arrays[name] for name in names)
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        shapes = " and ".join(f"'{name}' {arrays[name].shape}" for name in names)
        raise DataError(
            f"{path} has inputs and targets of different length: {shapes}; both need the same rows"
        )
    return inputs, targets.reshape(-1) if targets.shape[1:] == (1,) else targets


def _pick(arrays: dict[str, npt.NDArray[Any]], wanted: tuple[str, ...], suffix: str, *, path: Path) -> str:
    found = [name + suffix for name in wanted if name + suffix in arrays]
    if len(found) == 1:
        return found[0]
    problem = f"more than one of {found}" if found else f"no array '{wanted[0]}{suffix}'"
    raise DataError(
        f"{path} has {problem} among {sorted(arrays)}; name the arrays x and y, "
        "or x_train, y_train, x_test, y_test"
    )


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    with path.open("rb") as stream:
        start = stream.read(4)
    if start[:2] != b"PK":
        raise DataError(
            f"{path} is not an .npz archive: it begins with {start!r}, expected b'PK'; write it with np.savez"
        )
    try:
        # opened here, because np.load leaves a file that it cannot read open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        expected, found = _expected_bytes(path), path.stat().st_size
        reason = (
            f"expected at least {expected} bytes, found {found}"
            if found < expected
            else f"{found} bytes: {error}"
        )
        raise DataError(
            f"{path} is truncated or damaged ({reason}); write or fetch the file again"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} holds an array that cannot be read as plain numbers or words: {error}; "
            "save it without objects"
        ) from error


def _expected_bytes(path: Path) -> int:
    """How many bytes the zip archive must have at least, by the headers that are there."""
    position = 0
    with path.open("rb") as stream:
        while True:
            stream.seek(position)
            header = stream.read(_LIST_HEADER.size)
            if header.startswith(b"PK\x03\x04"):
                layout = _LOCAL_HEADER
            elif header.startswith(b"PK\x01\x02"):
                layout = _LIST_HEADER
            else:
                return position + _END_RECORD_BYTES
            if len(header) < layout.size:
                return position + layout.size
            fields = layout.unpack_from(header)
            if layout is _LIST_HEADER:
                position += layout.size + sum(fields[10:13])
                continue
            packed_bytes, name_bytes, extra_bytes = fields[7], fields[9], fields[10]
            stream.seek(position + layout.size + name_bytes)
            extra = stream.read(extra_bytes)
            if packed_bytes == _SIZE_IN_EXTRA and len(extra) >= 20:  # id, length, full size, packed size
                packed_bytes = struct.unpack_from("<Q", extra, 12)[0]
            position += layout.size + name_bytes + extra_bytes + packed_bytes
