"""One file per kind of data source; `read_source` knows which one a ``--data`` value means."""

from __future__ import annotations

from hqde.data.examples import Task
from hqde.data.readers.digits import read_digits
from hqde.data.source import Source
from hqde.errors import DataError, did_you_mean

SOURCES = ("digits", "fashion-mnist", "cifar10")


def read_source(source: str, *, task: Task | None = None, target: str | None = None) -> Source:
    """Read what ``source`` names."""
    if source == "digits":
        return read_digits()
    raise DataError(f"unknown data set '{source}'; {did_you_mean(source, SOURCES)}")
