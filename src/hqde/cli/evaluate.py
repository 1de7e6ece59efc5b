"""``hqde evaluate``: figures of a trained ensemble on labelled rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hqde.cli.artefacts import (
    AddressOption,
    BackendOption,
    GpusOption,
    PrecisionOption,
    asks_for_matrix,
    open_ensemble,
    predict_members,
    rows_for,
    validation_rows,
)
from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.data import load_inputs
from hqde.ensemble import Evaluation, fit_to_predictions


def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN|ARTEFACT", help="A run or an artefact directory.")],
    data: Annotated[
        str | None, typer.Option(help="Labelled rows; left out, the run's own test split.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target column of a table.")] = None,
    ood: Annotated[
        str | None, typer.Option("--ood", help="Rows of another kind, to see whether uncertainty finds them.")
    ] = None,
    combiner: Annotated[
        str | None,
        typer.Option(help="Combine the members like this instead, fitted on the run's validation split."),
    ] = None,
    precision: PrecisionOption = None,
    backend: BackendOption = "local",
    address: AddressOption = None,
    num_gpus: GpusOption = 0.0,
    format_: FormatOption = Format.text,
) -> None:
    """Judge a trained ensemble: accuracy, NLL, Brier, ECE, members and diversity, or RMSE and CRPS."""
    ensemble = open_ensemble(path)
    rows = rows_for(path, ensemble, data, target)
    outside = None if ood is None else load_inputs(ood, schema=ensemble.schema, target=target)
    predict = partial(
        predict_members, ensemble, precision=precision, backend=backend, address=address, num_gpus=num_gpus
    )
    members = predict(rows)
    if combiner is not None:
        held_out = validation_rows(path)
        ensemble = fit_to_predictions(
            ensemble,
            combiner,
            predict(held_out),
            held_out.targets,
            matrix_scaling=asks_for_matrix(ensemble),
        )
    result = ensemble.evaluate_predictions(members, rows.targets)
    foreign = None
    if outside is not None:
        foreign = ensemble.ood_auroc_of(members, predict(outside))
    if format_ is Format.json:
        how = {
            "combiner": ensemble.combiner.name,
            "temperature": ensemble.temperature,
            "matrix_scaling": ensemble.matrix_scaling is not None,
        }
        print_json({**how, **result.to_dict(), "ood_auroc": foreign})
    else:
        out.print(_table(result))
        scaled = ", matrix scaling" if ensemble.matrix_scaling is not None else ""
        out.print(f"combiner {ensemble.combiner.name}, temperature {ensemble.temperature:.3f}{scaled}")
        for name, value in (result.diversity or {}).items():
            out.print(f"{name.replace('_', ' ')}: {value:.4f}")
        for name, value in (foreign or {}).items():
            out.print(f"AUROC of {name} uncertainty against {ood}: {value:.4f}", soft_wrap=True)


def _table(result: Evaluation) -> Table:
    table = Table(title=f"{result.num_rows} rows", title_justify="left")
    names = [
        name
        for name in ("accuracy", "nll", "brier", "ece", "rmse", "crps")
        if getattr(result, name) is not None
    ]
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    table.add_row("ensemble", *(f"{getattr(result, name):.4f}" for name in names))
    for member in result.members:
        figures = (member.get(name) for name in names)
        table.add_row(
            f"member {member['member']}", *("" if value is None else f"{value:.4f}" for value in figures)
        )
    return table
