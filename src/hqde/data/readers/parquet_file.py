"""Opening parquet files: whole, or refused with what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hqde.data.readers.files import existing_file, load_pyarrow
from hqde.errors import DataError

_MARK = b"PAR1"
_LEAST_BYTES = 12  # the mark twice, and the length of the footer


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


def column_numbers(column: Any, *, what: str) -> npt.NDArray[np.float32]:
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


def column_targets(column: Any, *, what: str) -> npt.NDArray[Any]:
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


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} ({path.stat().st_size} bytes) is damaged: {reason}; fetch the file again"
