"""Where the commands write: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


class Format(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="Print the result as text, or as JSON.")]


def print_json(result: dict[str, Any]) -> None:
    """One JSON document on stdout, nothing else."""
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")


def fail(message: str, *, code: int) -> NoReturn:
    """One sentence on stderr, and out."""
    err.print(f"[bold red]error:[/] {_plain(message)}", soft_wrap=True)
    sys.exit(code)


def _plain(message: str) -> str:
    return message.replace("[", r"\[")
