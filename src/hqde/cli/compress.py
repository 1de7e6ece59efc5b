"""``hqde compress``: an artefact of fewer bytes."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from hqde.cli.artefacts import artefact_of, open_ensemble, rows_for, validation_for
from hqde.cli.console import Format, FormatOption, err, out, print_json
from hqde.data import Examples
from hqde.ensemble import Compressed, Ensemble, Evaluation, compress_ensemble, describe_storage
from hqde.errors import ConfigError, HqdeError, did_you_mean

UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip
SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")
FIGURES = ("accuracy", "nll", "brier", "ece", "rmse", "crps")


def compress(
    path: Annotated[Path, typer.Argument(metavar="RUN|ARTEFACT", help="A run or an artefact directory.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Directory of the new artefact.")],
    bits: Annotated[
        float | None, typer.Option(help="Average bits per quantised weight, 2 to 16; default 4.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Largest directory: 5MB, 500KB, 1.5MiB or bytes.")
    ] = None,
    max_accuracy_loss: Annotated[
        float | None,
        typer.Option(
            help="Smallest size that loses at most this fraction of accuracy on the validation rows, 0.005 "
            "for half a point; for regression, this relative increase of RMSE."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled rows to judge on; left out, the run's own validation split.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target column of a table.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing artefact.")] = False,
    format_: FormatOption = Format.text,
) -> None:
    """Write a smaller artefact: weights as packed codes, with bits where they matter most.

    Give --bits, --budget or --max-accuracy-loss. With validation rows it is measured how much each tensor
    matters; without, the squared error of the weights alone decides.
    """
    modes = {"--bits": bits, "--budget": budget, "--max-accuracy-loss": max_accuracy_loss}
    given = [f"{name} {value}" for name, value in modes.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} contradict each other: give one of them")
    budget_bytes = None if budget is None else parse_size(budget)
    source = artefact_of(path)
    if out_dir.resolve() == source.resolve():
        raise ConfigError(f"{out_dir} is the artefact to be compressed: choose another directory with --out")
    if out_dir.exists() and not overwrite:
        raise ConfigError(f"{out_dir} exists; choose another directory, or say --overwrite")
    ensemble = open_ensemble(path)
    rows, reason = _rows(path, ensemble, data, target)
    if rows is None and max_accuracy_loss is not None:
        raise ConfigError(f"--max-accuracy-loss needs labelled rows: {reason}")
    with _Steps(quiet=format_ is Format.json) as steps:
        found = compress_ensemble(
            ensemble,
            bits=bits,
            budget_bytes=budget_bytes,
            max_accuracy_loss=max_accuracy_loss,
            data=rows,
            on_progress=steps.show,
        )
    found.ensemble.save(out_dir)
    sizes = directory_bytes(source), directory_bytes(out_dir)
    if format_ is Format.json:
        print_json(_document(found, sizes, out_dir, reason))
        return
    _print_tables(found, sizes, reason)
    out.print(f"artefact: {out_dir}", soft_wrap=True)


def parse_size(text: str) -> int:
    """Bytes of a size like ``5MB`` (10⁶), ``1.5MiB`` (2²⁰), ``500KB`` or a plain number of bytes.

    Raises:
        ConfigError: no such unit, or no number.

    >>> parse_size("1.5MiB"), parse_size("5 mb"), parse_size("700")
    (1572864, 5000000, 700)
    """
    match = SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"'{text}' is no size; write a number and a unit, like 5MB or 1.5MiB")
    number, unit = match.groups()
    if unit and unit.upper() not in UNITS:
        known = [name.replace("I", "i") for name in UNITS]
        raise ConfigError(f"unknown unit '{unit}' in the size '{text}'; {did_you_mean(unit, known)}")
    return int(Decimal(number) * UNITS[unit.upper() or "B"])


def directory_bytes(path: Path) -> int:
    """Bytes of the files in a directory."""
    return sum(file.stat().st_size for file in path.iterdir())


def _rows(
    path: Path, ensemble: Ensemble, data: str | None, target: str | None
) -> tuple[Examples | None, str | None]:
    """Rows to judge on, or why there are none."""
    if data is not None:
        return rows_for(path, ensemble, data, target), None
    try:
        return validation_for(path), None
    except HqdeError as problem:  # said with the result, or refused where rows are needed
        return None, str(problem)


def _document(found: Compressed, sizes: tuple[int, int], out_dir: Path, reason: str | None) -> dict[str, Any]:
    validation = None
    if found.before is not None and found.after is not None:
        validation = {
            "rows": found.before.num_rows,
            "before": _figures(found.before),
            "after": _figures(found.after),
        }
    return {
        "out": str(out_dir),
        "bytes_before": sizes[0],
        "bytes_after": sizes[1],
        "ratio": sizes[0] / sizes[1],
        "bits": found.bits,
        "storage": [
            {"kind": row.kind, "tensors": row.tensors, "numbers": row.numbers, "bytes": row.nbytes}
            | {"bits": row.bits}
            for row in describe_storage(found.ensemble.members)
        ],
        "validation": validation,
        "no_validation_because": reason,
    }


def _figures(result: Evaluation) -> dict[str, float]:
    return {name: getattr(result, name) for name in FIGURES if getattr(result, name) is not None}


def _print_tables(found: Compressed, sizes: tuple[int, int], reason: str | None) -> None:
    ratio = sizes[0] / sizes[1]
    width = "" if found.bits is None else f", quantised weights at {found.bits:.3g} bits on average"
    title = f"{sizes[0]:,} → {sizes[1]:,} bytes: 1/{ratio:.2f}{width}"
    table = Table(title=title, title_justify="left")
    table.add_column("tensors of")
    for name in ("tensors", "numbers", "bytes", "bits each, with scales"):
        table.add_column(name, justify="right")
    for row in describe_storage(found.ensemble.members):
        table.add_row(row.kind, f"{row.tensors:,}", f"{row.numbers:,}", f"{row.nbytes:,}", f"{row.bits:.2f}")
    out.print(table)
    if found.before is None or found.after is None:
        out.print(f"accuracy not measured: {reason}", soft_wrap=True)
        return
    judged = Table(title=f"{found.before.num_rows} validation rows", title_justify="left")
    judged.add_column("")
    before, after = _figures(found.before), _figures(found.after)
    for name in before:
        judged.add_column(name, justify="right")
    judged.add_row("before", *(f"{value:.4f}" for value in before.values()))
    judged.add_row("after", *(f"{value:.4f}" for value in after.values()))
    judged.add_row("change", *(f"{after[name] - value:+.4f}" for name, value in before.items()))
    out.print(judged)


class _Steps:
    """Shows how far a compression is: a bar on a terminal, elsewhere a line for what is begun."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._said: set[tuple[str, int]] = set()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if err.is_terminal and not self._quiet:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._bar = Progress(*columns, console=err, transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=stage, completed=done, total=total)
        elif not self._quiet and (stage, done if stage == "search" else 0) not in self._said:
            self._said.add((stage, done if stage == "search" else 0))
            err.print(f"{stage}: {done}/{total}", highlight=False)
