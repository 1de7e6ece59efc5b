"""``hqde top``: a run as it goes, from its directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.cli.top_view import (
    COLUMNS,
    ensemble_lines,
    event_lines,
    headline,
    resource_lines,
    row_of,
    sorted_workers,
)
from hqde.errors import ConfigError, MissingExtraError
from hqde.reporting.live import LiveRun

ONCE_EVENTS = 8
ONCE_WIDTH = 130


def top(
    run: Annotated[
        Path, typer.Argument(help="A run directory: of a run that goes on, or of a finished one.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Print the state and leave.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", help="Seconds between two looks.")] = 1.0,
    format_: FormatOption = Format.text,
) -> None:
    """Show a run live: workers, groups, losses, diversity, bytes, events, and the machine."""
    if interval_s <= 0:
        raise ConfigError(f"--interval must be above 0, got {interval_s:g}")
    shown = LiveRun(run)
    if format_ is Format.json:
        print_json(shown.to_dict())
    elif once or not sys.stdout.isatty():
        _print(shown)
    else:
        try:
            from hqde.cli.top_screen import TopApp
        except ImportError as error:
            raise MissingExtraError("the live screen (hqde top --once needs none)", extra="top") from error
        TopApp(shown, interval_s=interval_s).run()


def _print(run: LiveRun) -> None:
    out.print(headline(run), soft_wrap=True)
    if run.workers:
        table = Table(box=None, pad_edge=False)
        for name, _, _ in COLUMNS:
            justify: JustifyMethod = "left" if name in ("status", "losses") else "right"
            table.add_column(name, justify=justify, no_wrap=True)
        for view in sorted_workers(run, 0):
            table.add_row(*(escape(cell) for cell in row_of(view)))
        out.print(table, width=max(out.width, ONCE_WIDTH), crop=False)
    for lines in (ensemble_lines(run), resource_lines(run), event_lines(run, ONCE_EVENTS)):
        out.print("\n".join(escape(line) for line in lines), soft_wrap=True)
