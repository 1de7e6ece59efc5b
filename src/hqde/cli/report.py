"""``hqde report``: the page of a run, made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.reporting import build_report


def report(
    run: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="Where to; default RUN/report.html.")] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Write a run's report: one HTML page that needs no network."""
    written = build_report(run, out_file)
    if format_ is Format.json:
        print_json({"report": str(written), "bytes": written.stat().st_size})
    else:
        out.print(str(written), soft_wrap=True)
