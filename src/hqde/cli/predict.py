"""``hqde predict``: one row of predictions per row of data."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from torch import Tensor

from hqde.cli.artefacts import (
    AddressOption,
    BackendOption,
    GpusOption,
    PrecisionOption,
    open_ensemble,
    predict_members,
    target_for,
)
from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.data import load_inputs
from hqde.ensemble import Ensemble
from hqde.errors import ConfigError, MissingExtraError, did_you_mean

Columns = dict[str, npt.NDArray[np.generic]]
SUFFIXES = (".csv", ".npz", ".parquet")


def predict(
    path: Annotated[Path, typer.Argument(metavar="RUN|ARTEFACT", help="A run or an artefact directory.")],
    data: Annotated[str, typer.Option(help="Rows to predict; labels are not needed.")],
    out_file: Annotated[Path, typer.Option("--out", help="FILE.parquet, FILE.csv or FILE.npz to write.")],
    target: Annotated[str | None, typer.Option(help="Target column of a table, to leave out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    low_memory: Annotated[
        bool,
        typer.Option("--low-memory", help="Decode a compressed artefact layer by layer, in less memory."),
    ] = False,
    precision: PrecisionOption = None,
    backend: BackendOption = "local",
    address: AddressOption = None,
    num_gpus: GpusOption = 0.0,
    format_: FormatOption = Format.text,
) -> None:
    """Predict with a trained ensemble: class or number, probabilities, and how unsure it is.

    Columns for classes: `predicted`, `probability`, one `p_CLASS` each, and `total`, `aleatoric`, `epistemic`
    uncertainty in nats. For numbers: `predicted`, `std`, `aleatoric_std`, `epistemic_std` in target units.
    """
    if out_file.suffix not in SUFFIXES:
        raise ConfigError(
            f"cannot write '{out_file.name}'; {did_you_mean(out_file.suffix, SUFFIXES)} (by its ending)"
        )
    if out_file.exists() and not overwrite:
        raise ConfigError(f"{out_file} exists; choose another file, or say --overwrite")
    if not out_file.parent.is_dir():
        raise ConfigError(f"there is no directory {out_file.parent} to write {out_file.name} in")
    if low_memory and (precision is not None or backend != "local"):
        other = f"--precision {precision}" if precision is not None else f"--backend {backend}"
        raise ConfigError(f"--low-memory keeps weights packed and {other} decodes them all: leave one out")
    ensemble = open_ensemble(path, low_memory=low_memory)
    target = target_for(data, ensemble, target)
    inputs = load_inputs(data, schema=ensemble.schema, target=target)
    members = predict_members(
        ensemble, inputs, precision=precision, backend=backend, address=address, num_gpus=num_gpus
    )
    columns = prediction_columns(ensemble, members)
    draft = out_file.with_name(f".{out_file.name}.new{out_file.suffix}")
    _write(draft, columns)
    draft.replace(out_file)
    rows = len(columns["predicted"])
    if format_ is Format.json:
        print_json({"rows": rows, "out": str(out_file), "columns": list(columns)})
    else:
        out.print(f"{rows} rows → {out_file}", soft_wrap=True)


def prediction_columns(ensemble: Ensemble, members: Tensor) -> Columns:
    """Predictions as named columns, each ``(n,)``, from those of the members."""
    combined, parts = ensemble.combine(members), ensemble.split_uncertainty(members)
    if ensemble.schema.task == "regression":
        return {
            "predicted": combined[:, 0].numpy(),
            "std": parts.total.sqrt().numpy(),
            "aleatoric_std": parts.aleatoric.sqrt().numpy(),
            "epistemic_std": parts.epistemic.sqrt().numpy(),
        }
    best = combined.argmax(dim=1)
    columns: Columns = {
        "predicted": np.array([ensemble.schema.classes[i] for i in best.tolist()]),
        "probability": combined.amax(dim=1).numpy(),
    }
    columns |= {f"p_{name}": combined[:, i].numpy() for i, name in enumerate(ensemble.schema.classes)}
    return columns | {
        "total": parts.total.numpy(),
        "aleatoric": parts.aleatoric.numpy(),
        "epistemic": parts.epistemic.numpy(),
    }


def _write(path: Path, columns: Columns) -> None:
    if path.suffix == ".npz":
        np.savez(path, **columns)  # type: ignore[arg-type]
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    else:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingExtraError("writing parquet", extra="data") from error
        pq.write_table(pa.table(columns), path)
