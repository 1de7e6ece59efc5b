"""``hqde train``: from data to a run directory."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from hqde.cli.console import Format, FormatOption, err, out, print_json
from hqde.cli.progress import TrainingProgress
from hqde.cli.quickest import take_quickest, write_profile
from hqde.config import (
    build_backend,
    build_config,
    build_experiment,
    changed_settings,
    dump_config,
    load_data,
    load_tree,
    merge_trees,
    parse_assignment,
    resolve,
    without_place,
)
from hqde.config.toml import Tree
from hqde.errors import ConfigError, RunError
from hqde.reporting import build_report
from hqde.rounds import RunDirectory, train_run

DATA_HELP = "digits (default), fashion-mnist:DIR, cifar10:DIR, a file, an image folder, or module:function."


def train(
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with any of the settings.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    model: Annotated[str | None, typer.Option(help="mlp, cnn, resnet18 or module:Class.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N|MIN:MAX", help="Training replicas; MIN:MAX on Ray, as there is room."),
    ] = None,
    groups: Annotated[int | None, typer.Option(help="Groups; each ends as one member.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of each worker over its shard.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="Where workers live: local, ray, or auto: what is quickest here.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join, host:port or auto; else RAY_ADDRESS, else here.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Send deltas and weights packed, with so many bits per weight.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics at this port while the run goes.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random stream.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Run directory; default runs/NAME-NNN.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting; may be repeated.")
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Say where the time goes: a trace and a summary, in RUN/profile."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    format_: FormatOption = Format.text,
) -> None:
    """Train an ensemble and leave a run directory: configuration, history, artefact, figures, report."""
    least, most = _worker_range(workers)
    flags: dict[str, Tree] = {
        "data": {"source": data},
        "model": {"name": model},
        "topology": {"groups": groups},
        "compression": {"codec": None if bits is None else "packed", "bits": bits},
        "run": {"workers": most, "epochs": epochs, "backend": backend, "seed": seed},
        "ray": {"address": address, "min_workers": least},
        "monitoring": {"metrics_port": metrics_port},
    }
    given = merge_trees(
        load_tree(config) if config is not None else {},
        {name: kept for name, table in flags.items() if (kept := _given(table))},
        *[parse_assignment(text) for text in set_ or ()],
    )
    directory = RunDirectory(out_dir) if out_dir is not None else None
    old = None
    if resume:
        if directory is None:
            raise ConfigError("--resume needs --out RUN, the directory of the run to go on with")
        directory.require_run()
        old = build_config(load_tree(directory.config_file))
        settings = build_config(merge_trees(load_tree(directory.config_file), given))
    else:
        settings = build_config(given)
        if directory is not None:
            directory.refuse_if_taken()
    splits = load_data(settings)
    if old is not None and settings.run.backend == "auto":
        settings = replace(settings, run=replace(settings.run, backend=old.run.backend))
    settings, planned_s = take_quickest(settings, splits, quiet=format_ is Format.json)
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    settings = resolve(settings, splits)
    if old is not None and (changed := changed_settings(old, settings)):
        raise RunError(
            f"{out_dir} was made with other settings ({', '.join(changed)}); resume it unchanged, or start a "
            f"new run in another directory"
        )
    if directory is None:
        directory = RunDirectory(_free_directory(splits.name))
    experiment = build_experiment(settings, splits)
    text = dump_config(settings)
    quiet = format_ is Format.json
    try:
        with TrainingProgress(err, quiet=quiet) as progress:
            _, metrics = train_run(
                experiment,
                directory,
                config_toml=text,
                provenance={"config": without_place(tomllib.loads(text))},
                backend=build_backend(settings),
                checkpoint_every=settings.run.checkpoint_every,
                listeners=(progress,),
                resume=resume,
                monitoring=settings.monitoring,
            )
    except KeyboardInterrupt:
        err.print(f"interrupted; go on with: hqde train --resume --out {directory.path}", soft_wrap=True)
        raise
    report = build_report(directory.path)
    if quiet:
        print_json({"run": str(directory.path), "report": str(report), **metrics})
    else:
        _summary(directory, metrics)
        if planned_s is not None:
            out.print(f"planned {planned_s:.1f} s, took {metrics['train']['wall_s']:.1f} s")
        out.print(f"report: {report}", soft_wrap=True)
    if profile:
        summary = write_profile(directory, experiment, settings)
        if not quiet:
            out.print(summary.read_text(), highlight=False, soft_wrap=True)
            out.print(f"profile: {summary.parent}", soft_wrap=True)


def _worker_range(text: str | None) -> tuple[int | None, int | None]:
    """``8`` is 8 workers; ``4:16`` is up to 16, and never fewer than 4."""
    if text is None:
        return None, None
    least, colon, most = text.rpartition(":")
    try:
        return int(least) if colon else None, int(most)
    except ValueError:
        raise ConfigError(f"--workers takes a number, or MIN:MAX as in 4:16, got '{text}'") from None


def _given(table: dict[str, Any]) -> Tree:
    return {name: value for name, value in table.items() if value is not None}


def _free_directory(name: str) -> Path:
    """The first ``runs/NAME-NNN`` that does not exist."""
    number = 1
    while (path := Path("runs") / f"{name}-{number:03d}").exists():
        number += 1
    return path


def _summary(directory: RunDirectory, metrics: dict[str, Any]) -> None:
    calibrated, cost = metrics["calibrated"], metrics["train"]
    if metrics.get("accuracy") is not None:
        out.print(
            f"test accuracy {metrics['accuracy']:.4f} (mean member {metrics['mean_member_accuracy']:.4f}) · "
            f"NLL {metrics['nll']:.4f} → {calibrated['nll']:.4f} and ECE {metrics['ece']:.4f} → "
            f"{calibrated['ece']:.4f} at temperature {metrics['temperature']:.3f}"
            f"{' with matrix scaling' if metrics['matrix_scaling'] else ''}",
            soft_wrap=True,
        )
        if metrics["matrix_scaling"]:
            out.print(f"test accuracy {calibrated['accuracy']:.4f} with matrix scaling")
        elif metrics["matrix_scaling"] is False:
            out.print("no matrix scaling: the validation rows do not speak for one")
    else:
        out.print(f"test RMSE {metrics['rmse']:.6g} · CRPS {metrics['crps']:.6g}", soft_wrap=True)
    out.print(
        f"{len(metrics['members'])} member(s) from {metrics['workers']} worker(s) · {cost['wall_s']:.1f} s · "
        f"{cost['worker_samples_per_s']:,.0f} worker-samples/s",
        soft_wrap=True,
    )
    if privacy := metrics["privacy"]:
        out.print(
            f"privacy: ε {privacy['epsilon']:.4g} at δ {privacy['delta']:g} after {privacy['rounds']} "
            f"round(s), for {privacy['unit']}",
            soft_wrap=True,
        )
        if not privacy["secret_noise"]:
            out.print("the noise has a key: whoever knows it can take the noise out again", soft_wrap=True)
    faults = {name: count for name, count in metrics["faults"].items() if count and name != "resumes"}
    if faults:
        listed = ", ".join(f"{count} {name}" for name, count in faults.items())
        out.print(f"not everything went well: {listed}; see {directory.events_file}", soft_wrap=True)
    out.print(f"run: {directory.path}", soft_wrap=True)
