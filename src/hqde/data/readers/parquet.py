"""``FILE.parquet``: a table of numbers, or images as the Hugging Face hub stores them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hqde.data.examples import Task, TensorExamples
from hqde.data.readers.columns import choose_target, encode_targets
from hqde.data.readers.files import existing_file, load_pyarrow
from hqde.data.readers.images import decode_images
from hqde.data.source import EncodedExamples, Source
from hqde.errors import DataError

IMAGE_NAMES = ("img", "image")

_MARK = b"PAR1"
_LEAST_BYTES = 12  # the mark twice, and the length of the footer


def read_parquet(path: Path, *, task: Task | None = None, target: str | None = None) -> Source:
    """A parquet file: images if it has a column ``img`` or ``image``, else a table of numbers.

    Args:
        path: the file.
        task: overrides what the target's values say.
        target: the target's column; by default label, target, class or y, else the last.

    Raises:
        DataError: missing, truncated, a feature column that is not numeric, or missing values.
        MissingExtraError: pyarrow (or, for images, pillow) is not installed.
    """
    names = column_names(path)
    if any(name in names for name in IMAGE_NAMES):
        examples, found, classes = read_image_parquet([path], task=task, target=target)
        return Source(name=path.stem, task=found, train=examples, classes=classes)
    target_name = choose_target(names, target, path=path)
    table = read_table([path], names)
    what = f"{path}: target column '{target_name}'"
    values = _target_values(table.column(target_name), what=what)
    targets, found, classes = encode_targets(values, task=task, what=what)
    features = [
        _numbers(table.column(name), what=f"{path}: column '{name}'") for name in names if name != target_name
    ]
    inputs = torch.from_numpy(np.stack(features, axis=1))
    return Source(name=path.stem, task=found, train=TensorExamples(inputs, targets), classes=classes)


def read_image_parquet(
    paths: Sequence[Path], *, task: Task | None = None, target: str | None = None
) -> tuple[EncodedExamples, Task, tuple[str, ...] | None]:
    """Images of a column ``img`` or ``image`` (struct of ``bytes`` and ``path``, or bytes) and their labels.

    Args:
        paths: files that together make one part, in order.
        task: overrides what the target's values say.
        target: the target's column.

    Returns:
        Rows that are decoded when fetched, the task, and class names if the file tells them.
    """
    names = column_names(paths[0])
    image_name = next((name for name in IMAGE_NAMES if name in names), None)
    if image_name is None:
        raise DataError(f"{paths[0]} has no column 'img' or 'image', only {names}; check which file this is")
    target_name = choose_target(names, target, path=paths[0])
    pyarrow, _ = load_pyarrow()
    table = read_table(paths, [image_name, target_name])
    images = table.column(image_name)
    kind = images.type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        images = pyarrow.chunked_array(
            [chunk.field("bytes") for chunk in images.chunks], type=pyarrow.binary()
        )
    elif not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise DataError(
            f"{paths[0]}: column '{image_name}' holds {kind}, not image bytes; store encoded images"
        )
    if images.null_count:
        first = images.is_null().to_pylist().index(True)
        raise DataError(
            f"{paths[0]}: {images.null_count} of {len(images)} rows have no image bytes "
            f"(first: row {first}); embed the images in the file"
        )
    what = f"{paths[0]}: target column '{target_name}'"
    targets, found, classes = encode_targets(
        _target_values(table.column(target_name), what=what), task=task, what=what
    )

    def decode(index: Tensor) -> Tensor:
        rows = index.tolist()
        encoded = images.take(pyarrow.array(rows, type=pyarrow.int64())).to_pylist()
        return decode_images(
            encoded, describe=lambda position: f"{paths[0]}: the image of row {rows[position]}"
        )

    if found == "classification" and classes is None:
        classes = _hub_classes(table.schema.metadata, target_name)
    return EncodedExamples(targets, decode), found, classes


def column_names(path: Path) -> list[str]:
    """The file's columns, less the row numbers that pandas stores."""
    pyarrow, parquet = load_pyarrow()
    check_whole(path)
    try:
        schema = parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(_damaged(path, error)) from error
    return [name for name in schema.names if not name.startswith("__index_level_")]


def read_table(paths: Sequence[Path], names: Sequence[str]) -> Any:
    """The columns ``names`` of all files, one below the other."""
    pyarrow, parquet = load_pyarrow()
    tables = []
    for path in paths:
        check_whole(path)
        try:
            tables.append(parquet.ParquetFile(path).read(columns=list(names)))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(_damaged(path, error)) from error
    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{paths[0].parent}: the parts have different columns: {error}; use parts of one set"
        ) from error


def check_whole(path: Path) -> None:
    """Refuse a file that is not parquet or not all there.

    The layout (github.com/apache/parquet-format): ``PAR1``, the column chunks, the footer, the footer's
    length in 4 bytes, ``PAR1``. The footer says where each chunk lies.
    """
    size = existing_file(path).stat().st_size
    with path.open("rb") as stream:
        start = stream.read(4)
        stream.seek(max(0, size - 8))
        end = stream.read(8)
    if start != _MARK:
        raise DataError(f"{path} is not a parquet file: it begins with {start!r}, expected {_MARK!r}")
    if size < _LEAST_BYTES or end[4:] != _MARK:
        raise DataError(
            f"{path} is truncated: expected {_MARK!r} as the last 4 of its bytes, found {end[-4:]!r} after "
            f"{size} bytes; fetch the file again"
        )
    footer_bytes = int.from_bytes(end[:4], "little")
    if footer_bytes + _LEAST_BYTES > size:
        raise DataError(
            f"{path} is truncated: expected at least {footer_bytes + _LEAST_BYTES} bytes, found {size}; "
            "fetch the file again"
        )
    pyarrow, parquet = load_pyarrow()
    try:
        footer = parquet.read_metadata(path)
        chunks = [
            footer.row_group(group).column(column)
            for group in range(footer.num_row_groups)
            for column in range(footer.num_columns)
        ]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(_damaged(path, error)) from error
    content = max((_chunk_start(chunk) + chunk.total_compressed_size for chunk in chunks), default=4)
    if content + footer_bytes + 8 > size:
        raise DataError(
            f"{path} is truncated: expected at least {content + footer_bytes + 8} bytes, found {size}; "
            "fetch the file again"
        )


def _chunk_start(chunk: Any) -> int:
    if chunk.has_dictionary_page:
        return int(chunk.dictionary_page_offset)
    return int(chunk.data_page_offset)


def _numbers(column: Any, *, what: str) -> npt.NDArray[np.float32]:
    pyarrow, _ = load_pyarrow()
    kind, types = column.type, pyarrow.types
    if not (
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    ):
        raise DataError(
            f"{what} is not numeric but {kind}, first '{column[0].as_py() if len(column) else ''}'; "
            "encode it as numbers, leave it out, or make it the target"
        )
    _refuse_nulls(column, what=what)
    values = column.cast(pyarrow.float64()).to_numpy().astype(np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(
            f"{what}: {int(bad.sum())} of {len(values)} values are NaN or infinite "
            f"(first: row {int(bad.argmax())}); fill them or remove those rows"
        )
    return values


def _target_values(column: Any, *, what: str) -> npt.NDArray[Any]:
    pyarrow, _ = load_pyarrow()
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _refuse_nulls(column, what=what)
    kind, types = column.type, pyarrow.types
    if types.is_string(kind) or types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    if types.is_decimal(kind):
        column = column.cast(pyarrow.float64())
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise DataError(f"{what} holds {kind}; targets must be numbers or words")
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def _refuse_nulls(column: Any, *, what: str) -> None:
    if column.null_count:
        raise DataError(
            f"{what}: {column.null_count} of {len(column)} values are missing "
            f"(first: row {column.is_null().to_pylist().index(True)}); fill them or remove those rows"
        )


def _hub_classes(metadata: dict[bytes, bytes] | None, target_name: str) -> tuple[str, ...] | None:
    """Class names as the Hugging Face `datasets` library notes them in the file, if it wrote it."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[target_name]["names"])
    except (KeyError, ValueError, TypeError):
        return None


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} ({path.stat().st_size} bytes) is damaged: {reason}; fetch the file again"
