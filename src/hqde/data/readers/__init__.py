"""One file per kind of data source; `read_source` knows which one a ``--data`` value means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hqde.data.examples import Task
from hqde.data.readers.cifar10 import read_cifar10
from hqde.data.readers.digits import read_digits
from hqde.data.readers.function import PATTERN, read_function
from hqde.data.readers.idx import read_fashion_mnist
from hqde.data.readers.image_folder import read_image_folder
from hqde.data.readers.npz import read_npz
from hqde.data.readers.parquet import read_parquet
from hqde.data.readers.table_csv import read_csv
from hqde.data.source import Source
from hqde.errors import ConfigError, DataError, did_you_mean

FOLDER_SETS: dict[str, Callable[[Path], Source]] = {
    "cifar10": read_cifar10,
    "fashion-mnist": read_fashion_mnist,
}
"""Named data sets that live in a folder: written ``name:DIR``."""

TABLE_READERS = {".csv": read_csv, ".parquet": read_parquet}


def read_source(source: str, *, task: Task | None = None, target: str | None = None) -> Source:
    """Read what ``source`` names; the grammar stands in `hqde.data`.

    Raises:
        DataError: unknown, missing, damaged, or not usable.
        ConfigError: ``target`` or ``task`` does not fit this kind of source.
    """
    name, _, rest = source.partition(":")
    path = Path(source).expanduser()
    suffix = "" if name in FOLDER_SETS else path.suffix.lower()
    if suffix in TABLE_READERS:
        return TABLE_READERS[suffix](path, task=task, target=target)
    if target is not None:
        raise ConfigError(
            f"target='{target}' names a column of a table, but '{source}' is none; leave target out"
        )
    if suffix == ".npz":
        return read_npz(path, task=task)
    if name not in FOLDER_SETS and PATTERN.fullmatch(source):
        return _read_function(source, task=task)
    found = _read_classes(source, name, rest, path)
    if found is None:
        raise DataError(_unknown(name, source))
    if task == "regression":
        raise ConfigError(f"task='regression' does not fit '{source}', which holds classes; leave task out")
    return found


def _read_classes(source: str, name: str, rest: str, path: Path) -> Source | None:
    """Read one of the sources whose rows always have classes; None if it is none of them."""
    if source == "digits":
        return read_digits()
    if name in FOLDER_SETS:
        if not rest:
            raise DataError(f"'{name}' needs the folder of its files; write {name}:DIR")
        return FOLDER_SETS[name](Path(rest).expanduser())
    if source and (path.is_dir() or (name == source and _looks_like_path(source))):
        return read_image_folder(path)
    return None


def _read_function(source: str, *, task: Task | None) -> Source:
    name = source.partition(":")[0]
    try:
        return read_function(source, task=task)
    except DataError as error:
        hint = did_you_mean(name, FOLDER_SETS)
        if isinstance(error.__cause__, ModuleNotFoundError) and hint.startswith("did you mean"):
            raise DataError(_unknown(name, source)) from error
        raise


def _looks_like_path(source: str) -> bool:
    return "/" in source or "\\" in source or source.startswith((".", "~"))


def _unknown(name: str, source: str) -> str:
    known = ["digits", *FOLDER_SETS]
    hint = did_you_mean(name, known)
    return (
        f"unknown data set '{source}'; {hint}"
        if hint.startswith("did you mean")
        else f"unknown data set '{source}'; use {', '.join(sorted(known))}, a .npz, .parquet or .csv file, "
        "an image folder, or module:function"
    )
