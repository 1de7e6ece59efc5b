"""``FILE.csv``: one row per line, numbers as features, one column of numbers or words as target."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hqde.data.examples import Task, TensorExamples
from hqde.data.readers.columns import choose_features, choose_target, encode_targets, refuse_repeated
from hqde.data.readers.files import existing_file
from hqde.data.source import Source
from hqde.errors import DataError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})

_DELIMITERS = ",;\t"


def read_csv(path: Path, *, task: Task | None = None, target: str | None = None) -> Source:
    """A table of text, comma, semicolon or tab separated, as (n, d) float32 features and a target.

    The first line is a header if none of its cells is a number, or if it has a word where the second line has
    a number. Without a header columns are called ``"0"``, ``"1"``, ….

    Args:
        path: UTF-8 text.
        task: overrides what the target's values say.
        target: the target's column; by default label, target, class or y, else the last.

    Raises:
        DataError: missing, not text, lines of different length, words or missing values among the features.
    """
    names, columns, line_numbers = _read_columns(path)
    target_name = choose_target(names, target, path=path)
    what = f"{path}: target column '{target_name}'"
    values = _target_values(columns[target_name], line_numbers, what=what)
    targets, found, classes = encode_targets(values, task=task, what=what)
    inputs = _features(path, [name for name in names if name != target_name], columns, line_numbers)
    return Source(name=path.stem, task=found, train=TensorExamples(inputs, targets), classes=classes)


def read_csv_inputs(path: Path, *, num_features: int | None, target: str | None = None) -> Tensor:
    """The features of a table that need not have a target.

    Args:
        path: UTF-8 text.
        num_features: how many columns are features.
        target: a column to leave out.
    """
    names, columns, line_numbers = _read_columns(path)
    chosen = choose_features(names, target, num_features=num_features, path=path)
    return _features(path, chosen, columns, line_numbers)


def _read_columns(path: Path) -> tuple[list[str], dict[str, tuple[str, ...]], list[int]]:
    """The names of the columns, their cells, and the line in the file of each row."""
    lines, numbers = _read_lines(existing_file(path))
    if not lines:
        raise DataError(f"{path} is empty: 0 lines; give a line per row")
    names = [str(place) for place in range(len(lines[0]))]
    if _has_header(lines):
        names = [cell.strip() for cell in lines[0]]
        lines, numbers = lines[1:], numbers[1:]
    if not lines:
        raise DataError(f"{path} has a header but no rows; give a line per row")
    if "" in names:
        place = names.index("") + 1
        raise DataError(f"{path}: column {place} has no name (a row number?); name it or leave it out")
    for line, number in zip(lines, numbers, strict=True):
        if len(line) != len(names):
            raise DataError(
                f"{path}: line {number} has {len(line)} cells where the first has {len(names)}; correct it"
            )
    refuse_repeated(names, path=path)
    return names, dict(zip(names, zip(*lines, strict=True), strict=True)), numbers


def _features(
    path: Path, names: Sequence[str], columns: dict[str, tuple[str, ...]], line_numbers: list[int]
) -> Tensor:
    values = [_numbers(columns[name], line_numbers, what=f"{path}: column '{name}'") for name in names]
    return torch.from_numpy(np.stack(values, axis=1).astype(np.float32))


def _read_lines(path: Path) -> tuple[list[list[str]], list[int]]:
    """Cells of each line that is not blank, and the number of that line in the file."""
    lines, numbers = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(_DELIMITERS, key=first.count))
            for line in reader:
                if line and any(cell.strip() for cell in line):
                    lines.append(line)
                    numbers.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table of text: {error}; check the file") from error
    return lines, numbers


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _has_header(lines: list[list[str]]) -> bool:
    words = [not _is_number(cell) and cell.strip().lower() not in MISSING for cell in lines[0]]
    if all(words):
        return True
    second = lines[1] if len(lines) > 1 else []
    return any(word and _is_number(cell) for word, cell in zip(words, second, strict=False))


def _numbers(cells: tuple[str, ...], line_numbers: list[int], *, what: str) -> npt.NDArray[np.float64]:
    """A feature column; words and missing values are refused with their line."""
    try:
        values = np.array(cells).astype(np.float64)
    except ValueError as error:
        missing = [place for place, cell in enumerate(cells) if cell.strip().lower() in MISSING]
        words = [
            p for p, cell in enumerate(cells) if cell.strip().lower() not in MISSING and not _is_number(cell)
        ]
        if words:
            raise DataError(
                f"{what} is not numeric: {len(words)} of {len(cells)} cells are words, "
                f"first '{cells[words[0]]}' in line {line_numbers[words[0]]}; encode it as numbers, "
                "leave it out, or make it the target"
            ) from error
        raise DataError(_missing(what, len(missing), len(cells), line_numbers[missing[0]])) from error
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(_missing(what, int(bad.sum()), len(cells), line_numbers[int(bad.argmax())]))
    return values


def _target_values(cells: tuple[str, ...], line_numbers: list[int], *, what: str) -> npt.NDArray[Any]:
    """The target column: numbers if every cell is one, else words."""
    missing = [place for place, cell in enumerate(cells) if cell.strip().lower() in MISSING]
    if missing:
        raise DataError(_missing(what, len(missing), len(cells), line_numbers[missing[0]]))
    try:
        return np.array(cells).astype(np.float64)
    except ValueError:
        return np.array([cell.strip() for cell in cells])


def _missing(what: str, count: int, total: int, line: int) -> str:
    return (
        f"{what}: {count} of {total} values are missing, NaN or infinite (first: line {line}); "
        "fill them or remove those rows"
    )
