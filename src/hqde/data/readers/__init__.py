"""One file per kind of data source; what a ``--data`` value means is decided here.

A reader is a function from a path to a `Source`. To add one: write its file, and give it a place in the
tables below.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from hqde.data.examples import Inputs, Task
from hqde.data.readers.cifar10 import read_cifar10
from hqde.data.readers.digits import read_digits
from hqde.data.readers.function import PATTERN, read_function, read_function_inputs
from hqde.data.readers.idx import read_fashion_mnist
from hqde.data.readers.image_folder import read_image_folder, read_image_folder_inputs
from hqde.data.readers.npz import read_npz, read_npz_inputs
from hqde.data.readers.parquet import read_parquet, read_parquet_inputs
from hqde.data.readers.table_csv import read_csv, read_csv_inputs
from hqde.data.source import Source
from hqde.errors import ConfigError, DataError, did_you_mean

Found = TypeVar("Found")

FOLDER_SETS: dict[str, Callable[[Path], Source]] = {
    "cifar10": read_cifar10,
    "fashion-mnist": read_fashion_mnist,
}
"""Named data sets that live in a folder: written ``name:DIR``."""

TABLES = {".csv": (read_csv, read_csv_inputs), ".parquet": (read_parquet, read_parquet_inputs)}
"""Files with columns, by ending: how to read them with a target, and without."""


def read_source(source: str, *, task: Task | None = None, target: str | None = None) -> Source:
    """Read what ``source`` names; the grammar stands in `hqde.data`.

    Raises:
        DataError: unknown, missing, damaged, or not usable.
        ConfigError: ``target`` or ``task`` does not fit this kind of source.
    """
    kind, path = _kind(source, target=target)
    if kind in TABLES:
        return TABLES[kind][0](path, task=task, target=target)
    if kind == ".npz":
        return read_npz(path, task=task)
    if kind == "function":
        return _or_unknown(source, lambda: read_function(source, task=task))
    if task == "regression":
        raise ConfigError(f"task='regression' does not fit '{source}', which holds classes; leave task out")
    if kind == "digits":
        return read_digits()
    return read_image_folder(path) if kind == "folder" else FOLDER_SETS[kind](path)


def read_inputs(
    source: str, *, task: Task, num_features: int | None = None, target: str | None = None
) -> Inputs:
    """Read rows that need not be labelled, in their order; of a source with a test part, that part.

    Args:
        source: what to read.
        task: what the labels would be, if there are any.
        num_features: how many columns of a table are features.
        target: a column of a table to leave out.
    """
    kind, path = _kind(source, target=target)
    if kind in TABLES:
        return TABLES[kind][1](path, num_features=num_features, target=target)
    if kind == ".npz":
        return read_npz_inputs(path)
    if kind == "function":
        return _or_unknown(source, lambda: read_function_inputs(source, task=task))
    if kind == "folder":
        return read_image_folder_inputs(path)
    found = read_digits() if kind == "digits" else FOLDER_SETS[kind](path)
    return found.test_or_all.fetch(torch.arange(len(found.test_or_all))).inputs


def _kind(source: str, *, target: str | None) -> tuple[str, Path]:
    """Which kind of source this is, and the path it speaks of."""
    name, _, rest = source.partition(":")
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if name in FOLDER_SETS:
        if not rest:
            raise DataError(f"'{name}' needs the folder of its files; write {name}:DIR")
        kind, path = name, Path(rest).expanduser()
    elif suffix in TABLES or suffix == ".npz":
        kind = suffix
    elif PATTERN.fullmatch(source):
        kind = "function"
    elif source == "digits":
        kind = "digits"
    elif source and (path.is_dir() or (name == source and _looks_like_path(source))):
        kind = "folder"
    else:
        raise DataError(_unknown(name, source))
    if target is not None and kind not in TABLES:
        raise ConfigError(
            f"target='{target}' names a column of a table, but '{source}' is none; leave target out"
        )
    return kind, path


def _or_unknown(source: str, read: Callable[[], Found]) -> Found:
    """``name:rest`` may also be a misspelt data set: say so when there is no such module."""
    name = source.partition(":")[0]
    try:
        return read()
    except DataError as error:
        misspelt = did_you_mean(name, FOLDER_SETS).startswith("did you mean")
        if misspelt and isinstance(error.__cause__, ModuleNotFoundError):
            raise DataError(_unknown(name, source)) from error
        raise


def _looks_like_path(source: str) -> bool:
    return "/" in source or "\\" in source or source.startswith((".", "~"))


def _unknown(name: str, source: str) -> str:
    known = ["digits", *FOLDER_SETS]
    hint = did_you_mean(name, known)
    if not hint.startswith("did you mean"):
        files = "a .npz, .parquet or .csv file, an image folder, or module:function"
        hint = f"use {', '.join(sorted(known))}, {files}"
    return f"unknown data set '{source}'; {hint}"
