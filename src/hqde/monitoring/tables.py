"""The run's lines as tables: CSV, parquet and JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hqde.errors import ConfigError, MissingExtraError, RunError, did_you_mean

Row = dict[str, Any]
FORMATS = ("csv", "parquet", "jsonl")
SOURCES = {
    "resources": "resources.jsonl",
    "nodes": "nodes.jsonl",
    "history": "history.jsonl",
    "events": "events.jsonl",
}


def flatten(record: Mapping[str, Any], prefix: str = "") -> Row:
    """One level of columns: a table in a record by ``a.b``, a list by ``a.0``.

    >>> flatten({"round": 1, "phases": {"train": 0.5}, "gpus": [{"index": 0}]})
    {'round': 1, 'phases.train': 0.5, 'gpus.0.index': 0}
    """
    row: Row = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            row |= flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            row |= flatten({str(i): item for i, item in enumerate(value)}, f"{name}.")
        else:
            row[name] = value
    return row


def read_lines(path: Path) -> list[Row]:
    """The records of a JSON-lines file; a half-written last line is left out, and no file is no record.

    Raises:
        RunError: another line is broken, or the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path} line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise RunError(f"{path} line {number} must hold a JSON object, got a {type(record).__name__}")
        found.append(record)
    return found


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write rows whole or not at all; the ending (``.csv``, ``.parquet``, ``.jsonl``) decides the format.

    Columns are those of all rows, in the order in which they first appear; what a row lacks is empty.

    Raises:
        ConfigError: another ending.
        MissingExtraError: parquet without pyarrow.
        RunError: the path cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"a table is written as {', '.join(FORMATS)}, not as '{path.suffix or path.name}'")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "csv":
            _write_csv(rows, columns, draft)
        elif kind == "parquet":
            _write_parquet(rows, columns, draft)
        else:
            draft.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True) if path.parent.is_dir() else None


def export_tables(
    run: Path, kind: str, out: Path | None = None, *, names: Iterable[str] = SOURCES
) -> list[Path]:
    """A run's resources, those of other machines, its history, workers and events as tables.

    ``history`` has a row for each round, ``workers`` one for each worker in each round.

    Args:
        run: its directory.
        kind: ``csv``, ``parquet`` or ``jsonl``.
        out: the directory to write to; the run's own if left out.
        names: which of ``resources``, ``nodes``, ``history``, ``events``.

    Returns:
        the files, for what the run has.

    Raises:
        RunError: there is no run, or it cannot be read or written.
    """
    if kind not in FORMATS:
        raise ConfigError(f"unknown table format '{kind}'; {did_you_mean(kind, FORMATS)}")
    if not run.is_dir():
        raise RunError(f"{run} is not a run: there is no such directory")
    out = run / "tables" if out is None else out
    written = []
    for name in names:
        records = read_lines(run / SOURCES[name])
        tables = {name: records}
        if name == "history":
            rows = [{k: v for k, v in record.items() if k != "workers"} for record in records]
            workers = [{"round": r["round"], **worker} for r in records for worker in r.get("workers", ())]
            tables = {"history": rows, "workers": workers}
        for table, rows in tables.items():
            if rows:
                path = out / f"{table}.{kind}"
                write_table([flatten(row) for row in rows], path)
                written.append(path)
    if not written:
        raise RunError(f"{run} has nothing to export yet: no round is finished, and no sample was taken")
    return written


class _TableExporter:
    """Writes the tables when the run is over."""

    kind: Literal["csv", "parquet"]

    def __init__(self) -> None:
        self._run: Path | None = None

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Remember where the run is."""
        self._run = Path(run["directory"])

    def on_end(self, metrics: Mapping[str, Any] | None) -> None:  # noqa: ARG002 - written in either case
        """Write ``tables/`` in the run directory."""
        if self._run is not None:
            export_tables(self._run, self.kind)


class CsvExporter(_TableExporter):
    """``tables/*.csv`` in the run directory, when the run is over."""

    kind = "csv"


class ParquetExporter(_TableExporter):
    """``tables/*.parquet`` in the run directory, when the run is over (extra ``data``)."""

    kind = "parquet"


def _write_csv(rows: Sequence[Row], columns: Sequence[str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(rows: Sequence[Row], columns: Sequence[str], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("writing parquet", extra="data") from error
    table = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in columns})
    pyarrow.parquet.write_table(table, path)


def _column(values: list[Any]) -> list[Any]:
    """One type: whole numbers among others become floats, and anything among texts a text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values] if len(kinds) > 1 else values
