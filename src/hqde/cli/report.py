"""``hqde report``: the page of a run, made anew; of several, beside each other; or their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.errors import ConfigError
from hqde.monitoring import export_tables
from hqde.reporting import build_comparison, build_report


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="A run directory, finished or not; several are compared.")
    ],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Where to; default RUN/report.html, comparison.html for several."),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(metavar="csv|parquet|jsonl", help="Write a run's tables in place of the page."),
    ] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Write a run's report: one HTML page that needs no network. Several runs are compared on one page."""
    if export is not None:
        if len(runs) > 1:
            raise ConfigError(f"--export takes one run, got {len(runs)}; export them one by one")
        files = export_tables(runs[0], export, out_file)
        if format_ is Format.json:
            print_json({"tables": [str(file) for file in files]})
        else:
            out.print("\n".join(str(file) for file in files), soft_wrap=True)
        return
    if len(runs) > 1:
        written = build_comparison(runs, Path("comparison.html") if out_file is None else out_file)
    else:
        written = build_report(runs[0], out_file)
    if format_ is Format.json:
        print_json({"report": str(written), "bytes": written.stat().st_size})
    else:
        out.print(str(written), soft_wrap=True)
