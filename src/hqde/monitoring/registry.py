"""Exporters by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec

from hqde.errors import ConfigError, MissingExtraError, did_you_mean

# Name: where it lives, what it needs, and the extra that brings it.
EXPORTERS: Mapping[str, tuple[str, str | None, str]] = {
    "tensorboard": ("hqde.monitoring.tensorboard:TensorBoardExporter", "tensorboard", "tracking"),
    "mlflow": ("hqde.monitoring.mlflow:MlflowExporter", "mlflow", "mlflow"),
    "csv": ("hqde.monitoring.tables:CsvExporter", None, ""),
    "parquet": ("hqde.monitoring.tables:ParquetExporter", "pyarrow", "data"),
}


def check_exporter(name: str) -> None:
    """Look whether there could be such an exporter, without importing anything.

    Raises:
        ConfigError: it is none of the known names, and not ``module:Class``.

    >>> check_exporter("csv")
    """
    if name in EXPORTERS:
        return
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"unknown exporter '{name}'; {did_you_mean(name, EXPORTERS)}")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigError(f"exporter '{name}' is not an importable 'module:Class'")


def make_exporter(name: str) -> object:
    """A new exporter; ``module:Class`` is made without arguments, the working directory first on the path.

    Raises:
        ConfigError: there is none of that name, or it cannot be imported or made.
        MissingExtraError: its package is not installed.

    >>> type(make_exporter("csv")).__name__
    'CsvExporter'
    """
    check_exporter(name)
    where, needs, extra = EXPORTERS.get(name, (name, None, ""))
    if needs is not None and find_spec(needs) is None:
        raise MissingExtraError(f"exporter '{name}'", extra=extra)
    module, _, attribute = where.partition(":")
    here = os.getcwd()
    importlib.invalidate_caches()
    sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), attribute)()
    except MissingExtraError:
        raise
    except Exception as error:
        raise ConfigError(
            f"exporter '{name}' cannot be made from {here!r} or the Python path "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        sys.path.remove(here)
