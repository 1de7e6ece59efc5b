"""``hqde select``: fewer members that predict as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hqde.cli.artefacts import asks_for_matrix, open_pool, rows_for, validation_rows
from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.data import Examples
from hqde.ensemble import Ensemble, SelectedMembers, select_members
from hqde.errors import ConfigError
from hqde.rounds import RunDirectory

UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[A-Za-z]*)")


def select(
    path: Annotated[Path, typer.Argument(metavar="RUN|ARTEFACT", help="A run or an artefact directory.")],
    size: Annotated[int, typer.Option(help="How many members to keep.")],
    max_bytes: Annotated[
        str | None, typer.Option(help="Most that their parameters may take together, such as 5MB or 512KiB.")
    ] = None,
    max_ms: Annotated[
        float | None,
        typer.Option(help="Most milliseconds they may take together for 128 rows, measured here."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled rows, half to select and half to judge; left out, the run's own validation and "
            "test splits."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target column of a table.")] = None,
    sampler: Annotated[str, typer.Option(help="auto, brute, greedy, sa or pimc.")] = "auto",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Directory to save the selected members to, as an artefact.")
    ] = None,
    pool: Annotated[
        bool,
        typer.Option("--pool/--no-pool", help="Whether a run's snapshots may be chosen, where it has some."),
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the division of --data, and of the annealers.")] = 0,
    format_: FormatOption = Format.text,
) -> None:
    """Choose the members whose pool errs least, and compare them with the best one, the top K, and all.

    The figures shown are from rows that played no part in choosing.
    """
    if out_dir is not None and out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConfigError(f"{out_dir} exists and is not empty; choose another directory with --out")
    most = None if max_bytes is None else parse_bytes(max_bytes)
    ensemble = open_pool(path, whole=pool)
    selecting, judging = _rows(path, ensemble, data, target)
    found = select_members(
        ensemble,
        size,
        selecting,
        judge=judging,
        max_bytes=most,
        max_ms=max_ms,
        sampler=sampler,
        matrix_scaling=asks_for_matrix(ensemble),
        seed=seed,
    )
    if out_dir is not None:
        found.ensemble.save(out_dir)
    if format_ is Format.json:
        print_json(
            {
                "selected": list(found.selected),
                "energy": found.energy,
                "solver": found.solver,
                "exact": found.exact,
                "combiner": found.ensemble.combiner.name,
                "temperature": found.ensemble.temperature,
                "matrix_scaling": found.ensemble.matrix_scaling is not None,
                "selecting_rows": found.num_selecting_rows,
                "judging_rows": found.num_judging_rows,
                "comparison": list(found.comparison),
                "out": None if out_dir is None else str(out_dir),
            }
        )
        return
    out.print(_table(found))
    how = "the best of all sets" if found.exact else f"found by {found.solver}, not proven best"
    out.print(f"selected: {', '.join(map(str, found.selected))} ({how})", soft_wrap=True)
    if out_dir is not None:
        out.print(f"saved: {out_dir}", soft_wrap=True)


def parse_bytes(text: str) -> int:
    """``"5MB"``, ``"512KiB"``, ``"1000"`` in bytes.

    Raises:
        ConfigError: it is none of these.

    >>> parse_bytes("5MB"), parse_bytes("1.5KiB")
    (5000000, 1536)
    """
    found = SIZE.fullmatch(text.strip())
    if found is None or found["unit"] not in UNITS:
        units = ", ".join(unit for unit in UNITS if unit)
        raise ConfigError(f"'{text}' is no number of bytes; write a number and one of {units}")
    return int(float(found["number"]) * UNITS[found["unit"]])


def _rows(
    path: Path, ensemble: Ensemble, data: str | None, target: str | None
) -> tuple[Examples, Examples | None]:
    """Rows to select and to judge on; those of ``--data`` are divided later."""
    run = RunDirectory(path)
    if data is not None or not run.config_file.is_file():
        return rows_for(path, ensemble, data, target), None
    return validation_rows(path), rows_for(path, ensemble, None, target)


def _table(found: SelectedMembers) -> Table:
    rows = f"{found.num_selecting_rows} rows to select, {found.num_judging_rows} to judge"
    table = Table(title=rows, title_justify="left")
    names = [name for name in ("accuracy", "nll", "brier", "ece", "rmse") if name in found.comparison[0]]
    for column in ("", "members", *names, "kB", "ms"):
        left = column in ("", "members")
        table.add_column(column, no_wrap=column == "", justify="left" if left else "right")
    for row in found.comparison:
        members = ", ".join(map(str, row["members"]))
        figures = (f"{row[name]:.4f}" for name in names)
        table.add_row(row["set"], members, *figures, f"{row['bytes'] / 1000:.1f}", f"{row['ms']:.2f}")
    return table
