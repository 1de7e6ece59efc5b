"""The ``hqde`` command: subcommands, exit codes, and what an error looks like."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import hqde
from hqde.cli.compress import compress
from hqde.cli.console import fail
from hqde.cli.doctor import doctor
from hqde.cli.drill import drill
from hqde.cli.evaluate import evaluate
from hqde.cli.plan import plan
from hqde.cli.predict import predict
from hqde.cli.report import report
from hqde.cli.select import select
from hqde.cli.top import top
from hqde.cli.train import train
from hqde.cli.tune import tune
from hqde.errors import HqdeError, NonFiniteError, QuorumError, WorkerError
from hqde.memory import freed_memory_kept

app = typer.Typer(
    name="hqde",
    help="Train ensembles as groups of workers: synchronised inside a group, independent between groups.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for command in (train, plan, evaluate, predict, select, compress, tune, report, top, drill, doctor):
    app.command()(command)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Options before the subcommand."""
    if version:
        typer.echo(hqde.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 the run failed, 2 bad usage or input, 130 interrupted."""
    try:
        with freed_memory_kept():
            app()
    except (WorkerError, QuorumError, NonFiniteError) as error:
        fail(str(error), code=1)
    except HqdeError as error:
        fail(str(error), code=2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
