"""What ``RUN|ARTEFACT`` on the command line means, and the rows to use it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from torch import Tensor

from hqde.backends import BACKENDS, RaySettings
from hqde.config import build_config, load_data, load_tree
from hqde.data import Examples, Inputs, Splits, load_rows
from hqde.ensemble import Ensemble, InferencePrecision
from hqde.errors import ArtefactError, ConfigError, did_you_mean
from hqde.rounds import RunDirectory

BackendOption = Annotated[str, typer.Option("--backend", help="Where members predict: local or ray.")]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster, host:port or auto; else RAY_ADDRESS, else here.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32 folds normalisations into convolutions; bf16 also computes in bfloat16, int8 also its "
        "convolutions in 8-bit integers: faster.",
    ),
]
GpusOption = Annotated[
    float, typer.Option("--num-gpus", help="On Ray: GPUs of each task, a whole number or 1/k.")
]


def artefact_of(path: Path) -> Path:
    """The artefact directory that ``path`` is, or that is in it.

    Raises:
        ArtefactError: a run that is not finished.
    """
    run = RunDirectory(path)
    if not run.config_file.is_file():
        return path
    if not run.artefact.exists():
        raise ArtefactError(
            f"{path} is a run that has no artefact yet; finish it with hqde train --resume --out {path}"
        )
    return run.artefact


def open_ensemble(path: Path, *, low_memory: bool = False) -> Ensemble:
    """The ensemble in a run directory or an artefact directory.

    Raises:
        ArtefactError: there is none, or it is damaged, or it is not compressed and ``low_memory``.
    """
    return Ensemble.load(artefact_of(path), low_memory=low_memory)


def open_pool(path: Path, *, whole: bool) -> Ensemble:
    """The members to choose from: a run's pool, with its snapshots, where it has one, else its ensemble.

    Args:
        path: a run or an artefact directory.
        whole: take the pool; else the ensemble in any case.

    Raises:
        ArtefactError: there is none, or it is damaged.
    """
    run = RunDirectory(path)
    if whole and run.config_file.is_file() and run.pool.exists():
        return Ensemble.load(run.pool)
    return open_ensemble(path)


def target_for(data: str, ensemble: Ensemble, target: str | None) -> str | None:
    """The target column of a table: the one asked for, else the one the ensemble was trained on."""
    if target is not None or Path(data).suffix.lower() not in (".csv", ".parquet") or ":" in data:
        return target
    trained_on = ensemble.provenance.get("config", {}).get("data", {}).get("target")
    return trained_on if isinstance(trained_on, str) else None


def rows_for(path: Path, ensemble: Ensemble, data: str | None, target: str | None) -> Examples:
    """Labelled rows: those of ``--data``, or the run's own test split when it is left out.

    Raises:
        ConfigError: ``--data`` is left out, but ``path`` is no run that could know its test split.
    """
    if data is not None:
        return load_rows(data, schema=ensemble.schema, target=target_for(data, ensemble, target))
    return _own_splits(path).test


def validation_for(path: Path) -> Examples:
    """The validation split of a run.

    Raises:
        ConfigError: ``path`` is no run that could know it.
        HqdeError: the run's data cannot be read any more.
    """
    return _own_splits(path).validation


def _own_splits(path: Path) -> Splits:
    run = RunDirectory(path)
    if not run.config_file.is_file():
        raise ConfigError(f"{path} is an artefact, which does not know its data; name them with --data")
    return load_data(build_config(load_tree(run.config_file)))


def validation_rows(path: Path) -> Examples:
    """The rows that a run held out for choosing and fitting.

    Raises:
        ConfigError: ``path`` is no run, or it held none out.
    """
    run = RunDirectory(path)
    if not run.config_file.is_file():
        raise ConfigError(f"{path} is an artefact, which knows no validation rows; give the run instead")
    rows = load_data(build_config(load_tree(run.config_file))).validation
    if not len(rows):
        raise ConfigError(f"the run {path} held out no validation rows")
    return rows


def asks_for_matrix(ensemble: Ensemble) -> bool:
    """Whether an ensemble has a matrix scaling, or the run that made it asked for one."""
    asked = ensemble.provenance.get("config", {}).get("ensemble", {}).get("matrix_scaling", False)
    return ensemble.matrix_scaling is not None or bool(asked)


def predict_members(
    ensemble: Ensemble,
    data: Examples | Inputs,
    precision: str | None,
    backend: str,
    address: str | None,
    num_gpus: float,
) -> Tensor:
    """The members' predictions, made here or on a cluster: ``Ensemble.predict_members``.

    Without a precision they are what the members themselves predict; with one, what they do once made ready
    for it.

    Raises:
        ConfigError: no such backend or cluster, or a cluster's option without one.
        MissingExtraError: Ray is not installed.
    """
    if precision is not None:
        ensemble = ensemble.for_inference(cast(InferencePrecision, precision), data)
    if backend == "ray":
        from hqde.backends.on_ray import predict_on_cluster  # imported by those who ask for it alone

        return predict_on_cluster(ensemble, data, RaySettings(address=address, num_gpus=num_gpus))
    if backend != "local":
        raise ConfigError(f"unknown backend '{backend}'; {did_you_mean(backend, BACKENDS)}")
    if address is not None or num_gpus:
        raise ConfigError("--address and --num-gpus are for --backend ray")
    return ensemble.predict_members(data)
