"""``hqde plan``: how to train quickest on this machine, and how long it will take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.cli.quickest import make_plan
from hqde.cli.train import DATA_HELP
from hqde.config import build_config, load_data, load_tree, merge_trees, parse_assignment
from hqde.planning import SpeedPlan


def plan(
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with any of the settings.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    model: Annotated[str | None, typer.Option(help="mlp, cnn, resnet18 or module:Class.")] = None,
    workers: Annotated[int | None, typer.Option(help="Training replicas.")] = None,
    groups: Annotated[int | None, typer.Option(help="Groups; each ends as one member.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of each worker over its shard.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting; may be repeated.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16/--no-bf16", help="Try bfloat16 too.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Try again what was found out before.")] = False,
    format_: FormatOption = Format.text,
) -> None:
    """Train a few steps in every way that this machine offers, and say which is quickest."""
    flags: dict[str, dict[str, str | int | None]] = {
        "data": {"source": data},
        "model": {"name": model},
        "topology": {"groups": groups},
        "run": {"workers": workers, "epochs": epochs},
    }
    given = {name: {k: v for k, v in table.items() if v is not None} for name, table in flags.items()}
    base = load_tree(config) if config is not None else {}
    settings = build_config(merge_trees(base, given, *[parse_assignment(text) for text in set_ or ()]))
    splits = load_data(settings)
    found = make_plan(settings, splits, bf16=bf16, fresh=fresh, quiet=format_ is Format.json)
    if format_ is Format.json:
        print_json(found.to_dict())
        return
    out.print(_table(found))
    for note in found.notes:
        out.print(note, soft_wrap=True)
    words = " ".join(f"--set {name}={value}" for name, value in found.chosen.settings().items())
    out.print(f"quickest: {words}", soft_wrap=True)


def _table(found: SpeedPlan) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "way", "worker-samples/s", "predicted", "memory", "bytes per worker"):
        table.add_column(name, justify="left" if name in ("", "way") else "right")
    for probe, seconds in zip(found.probes, found.seconds, strict=True):
        table.add_row(
            "→" if probe.candidate == found.chosen else "",
            probe.candidate.name,
            "–" if probe.samples_per_s is None else f"{probe.samples_per_s:,.0f}",
            "–" if seconds is None else f"{seconds:.1f} s",
            f"+{probe.rss_bytes / 2**20:,.0f} MiB",
            f"{probe.state_bytes:,}",
        )
    return table
