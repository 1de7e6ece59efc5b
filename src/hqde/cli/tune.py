"""``hqde tune``: which settings leave the least loss on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from hqde.cli.console import Format, FormatOption, err, out, print_json
from hqde.cli.train import DATA_HELP
from hqde.config import build_config, load_data, load_tree, merge_trees, parse_assignment, resolve
from hqde.errors import ConfigError
from hqde.tuning import Study, StudyResult, TrialRecord, parse_space

BEST_SHOWN = 5


def tune(
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="A.B=RANGE",
            help="What to search: LOW:HIGH, log:LOW:HIGH or [x, y]; may be repeated.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with any of the settings, and [search].")
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    model: Annotated[str | None, typer.Option(help="mlp, cnn, resnet18 or module:Class.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each trial.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where workers live: local or ray.")] = None,
    trials: Annotated[int, typer.Option(help="How many in all.")] = 20,
    parallel: Annotated[
        int, typer.Option(help="Trials that are groups of one run, where only workers' settings differ.")
    ] = 4,
    sampler: Annotated[str, typer.Option(help="tpe, random or tunnelling.")] = "tpe",
    seed: Annotated[int, typer.Option(help="Of the proposals.")] = 0,
    out_dir: Annotated[
        Path, typer.Option("--out", help="Directory of the study; best.toml is for hqde train --config.")
    ] = Path("study"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out.")] = False,
    format_: FormatOption = Format.text,
) -> None:
    """Search for settings by trials, each worth the loss that it ends with on the validation split."""
    tree = load_tree(config) if config is not None else {}
    table = tree.pop("search", {})
    if not isinstance(table, dict):
        raise ConfigError(f"[search] must be a table of ranges by setting, got {table!r}")
    flags: dict[str, dict[str, Any]] = {
        "data": {"source": data},
        "model": {"name": model},
        "run": {"epochs": epochs, "backend": backend},
    }
    given = {name: {k: v for k, v in each.items() if v is not None} for name, each in flags.items()}
    shared = merge_trees(tree, given, *[parse_assignment(text) for text in set_ or ()])
    settings = build_config(shared)
    space = parse_space(search or (), table, base=shared)
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    splits = load_data(settings)
    study = Study(
        out_dir,
        resolve(settings, splits),
        space,
        num_trials=trials,
        parallel=parallel,
        sampler=sampler,
        seed=seed,
    )
    quiet = format_ is Format.json
    found = study.run(splits, resume=resume, tell=None if quiet else _tell)
    if quiet:
        print_json(_document(found))
        return
    out.print(_table(found))
    how = "as groups of one run" if found.together else "one run after the other"
    out.print(f"{len(found.trials)} trials, {how}; the best is trial {found.best.index}", soft_wrap=True)
    out.print(f"train with it: hqde train --config {found.config_file}", soft_wrap=True)


def _tell(record: TrialRecord) -> None:
    worth = f"loss {record.loss:.4f}" if record.loss is not None else f"failed: {record.reason}"
    err.print(f"trial {record.index}: {worth} with {_shown(record.values)}", soft_wrap=True)


def _table(found: StudyResult) -> Table:
    table = Table(title=f"the best {min(BEST_SHOWN, len(found.trials))}", title_justify="left")
    names = list(found.best.values)
    for name in ("trial", "loss", *names):
        table.add_column(name, justify="right")
    sound = [record for record in found.trials if record.loss is not None]
    for record in sorted(sound, key=lambda record: record.loss or 0.0)[:BEST_SHOWN]:
        values = (_text(record.values[name]) for name in names)
        table.add_row(str(record.index), f"{record.loss:.4f}", *values)
    return table


def _document(found: StudyResult) -> dict[str, Any]:
    return {
        "best": _plain(found.best),
        "config": str(found.config_file),
        "together": found.together,
        "trials": [_plain(record) for record in found.trials],
    }


def _plain(record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": record.index,
        "loss": record.loss,
        "reason": record.reason or None,
        "values": record.values,
    }


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
