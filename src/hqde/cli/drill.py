"""``hqde drill``: trainings under attack."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from hqde.aggregation import ATTACKS, make_attack, optimal
from hqde.cli.console import Format, FormatOption, err, out, print_json
from hqde.config import (
    Config,
    build_backend,
    build_config,
    build_experiment,
    dump_config,
    load_data,
    load_tree,
    merge_trees,
    parse_assignment,
    resolve,
)
from hqde.data import Splits, make_partitioner
from hqde.drills import (
    AnyAttack,
    Cell,
    LabelFlip,
    ReplayFirst,
    Trial,
    bad_workers,
    drill_rule,
    render_heatmap,
    run_trial,
)
from hqde.errors import ConfigError, RunError, did_you_mean
from hqde.rounds import Experiment

ATTACKED_BY = ("sign_flip", "alie", "label_flip")
RULES = ("mean", "geometric_median", "nnm+geometric_median", "trimmed_mean", "multi_krum")
OTHERS: dict[str, AnyAttack] = {"label_flip": LabelFlip(), "replay": ReplayFirst()}
ATTACK_HELP = f"{', '.join((*OTHERS, *ATTACKS))}, or optimal:NAME; may be repeated."


def drill(
    rule: Annotated[
        list[str] | None, typer.Option(help="nnm+geometric_median, trimmed_mean, …; may be repeated.")
    ] = None,
    attack: Annotated[list[str] | None, typer.Option(help=ATTACK_HELP)] = None,
    num_byzantine: Annotated[
        list[int] | None, typer.Option("--num-byzantine", "-f", help="Bad workers in each group; repeatable.")
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Skew of a dirichlet partition; left out, iid; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of the training.")] = None,
    data: Annotated[str | None, typer.Option(help="As hqde train takes it.")] = None,
    model: Annotated[str | None, typer.Option(help="As hqde train takes it.")] = None,
    workers: Annotated[int | None, typer.Option(help="Training replicas, good and bad; default 9.")] = None,
    groups: Annotated[int | None, typer.Option(help="Groups; default 1.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training; default 5.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random stream.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting; may be repeated.")
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Directory of the table and the heat-map.")] = Path(
        "drill"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the drill in --out.")] = False,
    format_: FormatOption = Format.text,
) -> None:
    """Train under every attack with every rule: accuracy, and whether the bad workers were found out."""
    usual = {"run": {"workers": 9, "epochs": 5}, "topology": {"groups": 1}, "ensemble": {"calibrate": False}}
    flags: dict[str, dict[str, Any]] = {
        "data": {"source": data},
        "model": {"name": model},
        "topology": {"groups": groups},
        "run": {"workers": workers, "epochs": epochs, "seed": seed},
    }
    settings = build_config(
        merge_trees(
            usual,
            load_tree(config) if config is not None else {},
            {name: {k: v for k, v in table.items() if v is not None} for name, table in flags.items()},
            *[parse_assignment(text) for text in set_ or ()],
        )
    )
    cells = _cells(rule or RULES, attack or ATTACKED_BY, num_byzantine or [2], alpha or [])
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    splits = load_data(settings)
    settings = resolve(settings, splits)
    _check(settings, splits, cells)
    done = _begin(out_dir, dump_config(settings), resume)
    for number, cell in enumerate(cells, start=1):
        if cell not in done:
            done[cell] = _run(settings, splits, cell)
            with (out_dir / "drill.jsonl").open("a") as file:
                file.write(json.dumps({**asdict(cell), **done[cell].to_dict()}) + "\n")
        err.print(f"{number}/{len(cells)} · {_line(cell, done[cell])}", soft_wrap=True, highlight=False)
    results = {cell: done[cell] for cell in cells}
    title = f"{splits.name}, {settings.run.workers} workers, {settings.run.epochs} epochs"
    page = out_dir / "drill.html"
    page.write_text(render_heatmap(title, results))
    if format_ is Format.json:
        print_json(
            {"out": str(out_dir), "trials": [{**asdict(c), **t.to_dict()} for c, t in results.items()]}
        )
        return
    for skew, faults in dict.fromkeys((cell.skew, cell.num_byzantine) for cell in cells):
        out.print(_table(skew, faults, results))
    out.print(f"table: {out_dir / 'drill.jsonl'}\nheat-map: {page}", soft_wrap=True)


def _cells(
    rules: Sequence[str], attacks: Sequence[str], faults: Sequence[int], alphas: Sequence[float]
) -> list[Cell]:
    skews = [f"dirichlet {alpha:g}" for alpha in alphas] or ["iid"]
    named = ["none", *(name for name in attacks if name != "none")]
    found = [Cell(*cell) for cell in product(rules, named, faults, skews)]
    return sorted(dict.fromkeys(found), key=lambda c: (skews.index(c.skew), c.num_byzantine))


def _experiment(settings: Config, splits: Splits, cell: Cell) -> Experiment:
    name, _, alpha = cell.skew.partition(" ")
    partitioner = make_partitioner(name, alpha=float(alpha or 1.0))
    return replace(build_experiment(settings, splits), partitioner=partitioner)


def _attack(cell: Cell) -> AnyAttack | None:
    """What the bad workers of a cell do."""
    name, _, inner = cell.attack.partition(":")
    if cell.attack == "none":
        return None
    if cell.attack in OTHERS:
        return OTHERS[cell.attack]
    if name == "optimal" and inner:
        return optimal(make_attack(inner), drill_rule(cell.rule, cell.num_byzantine))
    known = (*OTHERS, *ATTACKS)
    if cell.attack not in known:
        raise ConfigError(f"unknown attack '{cell.attack}'; {did_you_mean(cell.attack, known)}")
    return make_attack(cell.attack)


def _check(settings: Config, splits: Splits, cells: list[Cell]) -> None:
    """Refuse what cannot be run before the first hour of it."""
    if splits.schema.task != "classification":
        raise ConfigError("a drill judges by accuracy; take data with classes")
    for cell in cells:
        experiment = _experiment(settings, splits, cell)
        _attack(cell)
        bad_workers(experiment.topology.groups_of(experiment.num_workers), cell.num_byzantine)
        replace(experiment, rule=drill_rule(cell.rule, cell.num_byzantine)).check_rule(experiment.plan())


def _begin(out_dir: Path, text: str, resume: bool) -> dict[Cell, Trial]:
    """Make the directory, or read what an earlier drill left in it."""
    written = out_dir / "config.toml"
    if not resume:
        if out_dir.exists() and any(out_dir.iterdir()):
            raise RunError(f"{out_dir} is not empty; choose another --out, or go on with --resume")
        out_dir.mkdir(parents=True, exist_ok=True)
        written.write_text(text)
        return {}
    if not written.is_file():
        raise RunError(f"{out_dir} holds no drill to go on with")
    if written.read_text() != text:
        raise RunError(f"the drill in {out_dir} was begun with other settings; choose another --out")
    lines = (out_dir / "drill.jsonl").read_text().splitlines() if (out_dir / "drill.jsonl").exists() else []
    return dict(_trial(json.loads(line)) for line in lines)


def _trial(line: dict[str, Any]) -> tuple[Cell, Trial]:
    own = {name: line.pop(name) for name in ("rule", "attack", "num_byzantine", "skew")}
    for name in ("flagged", "reasons"):
        line[name] = {int(worker): value for worker, value in line[name].items()}
    return Cell(**own), Trial(**line)


def _run(settings: Config, splits: Splits, cell: Cell) -> Trial:
    return run_trial(
        _experiment(settings, splits, cell),
        build_backend(settings),
        rule=drill_rule(cell.rule, cell.num_byzantine),
        attack=_attack(cell),
        num_byzantine=cell.num_byzantine,
    )


def _line(cell: Cell, trial: Trial) -> str:
    found = "broke: " + trial.broke if trial.accuracy is None else f"accuracy {trial.accuracy:.4f}"
    if trial.detection:
        found += f" · precision / recall {trial.detection}"
    what = f"{cell.skew} f={cell.num_byzantine} · {cell.rule} under {cell.attack}"
    return "".join([f"{what}: {found} · {trial.wall_s:.1f} s", *_flagged(trial)])


def _flagged(trial: Trial) -> list[str]:
    """A line for each worker that was flagged, those that were most often first."""
    often = sorted(trial.flagged.items(), key=lambda item: (-item[1], item[0]))
    return [f"\n    worker {worker}, {count} ×: {trial.reasons[worker]}" for worker, count in often]


def _table(skew: str, faults: int, results: dict[Cell, Trial]) -> Table:
    there = {c: t for c, t in results.items() if (c.skew, c.num_byzantine) == (skew, faults)}
    table = Table(title=f"{skew}, f = {faults}: accuracy (precision/recall)", title_justify="left")
    table.add_column("rule")
    attacks = list(dict.fromkeys(cell.attack for cell in there))
    for name in attacks:
        table.add_column(name, justify="right")
    for rule in dict.fromkeys(cell.rule for cell in there):
        table.add_row(rule, *(_entry(there[Cell(rule, name, faults, skew)]) for name in attacks))
    return table


def _entry(trial: Trial) -> str:
    if trial.accuracy is None:
        return "broke"
    return f"{trial.accuracy:.4f}" + (f" ({trial.detection})" if trial.detection else "")
