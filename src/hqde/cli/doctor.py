"""``hqde doctor``: what this machine has, whether it works, and what to do where it does not."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
import typer
from rich.table import Table

import hqde
from hqde.backends import LocalBackend
from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.config import build_config, build_experiment, load_data, resolve
from hqde.errors import HqdeError
from hqde.rounds import Engine

EXTRAS = {"data": ("pyarrow", "pillow")}
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``cure`` is empty where all is well."""

    what: str
    found: str
    cure: str = ""


def doctor(format_: FormatOption = Format.text) -> None:
    """Look the machine over: versions, threads, devices, memory, disk, extras, and a short training."""
    findings = list(examine())
    if format_ is Format.json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        table = Table(show_header=False, box=None)
        for finding in findings:
            mark = "[yellow]![/]" if finding.cure else "[green]✓[/]"
            table.add_row(mark, finding.what, finding.found, finding.cure)
        out.print(table)
    if any(finding.cure for finding in findings if finding.what == "self-test"):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Every finding, the quick ones first."""
    yield Finding("hqde", hqde.__version__)
    yield Finding("Python", platform.python_version())
    yield Finding("PyTorch", torch.__version__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    cure = "" if threads <= cores else f"more threads than cores: set run.threads = {cores}"
    yield Finding("threads", f"{threads} of {cores} usable cores", cure)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("CUDA devices", ", ".join(names) or "none")
    memory = psutil.virtual_memory()
    cure = "" if memory.available > GIB else "less than 1 GiB is free: close something"
    yield Finding("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free", cure)
    free = shutil.disk_usage(Path.cwd()).free
    cure = "" if free > GIB else "less than 1 GiB is free here: checkpoints may not fit"
    yield Finding("disk", f"{free / GIB:.1f} GiB free in the working directory", cure)
    for extra, packages in EXTRAS.items():
        yield _extra(extra, packages)
    yield _timed("self-test", _train_briefly)


def _extra(extra: str, packages: tuple[str, ...]) -> Finding:
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    cure = f"for its readers: pip install 'hqde[{extra}]'" if missing else ""
    return Finding(f"extra {extra}", ", ".join(found + [f"{name} missing" for name in missing]), cure)


def _timed(what: str, test: Callable[[], str]) -> Finding:
    began = time.perf_counter()
    try:
        result = test()
    except HqdeError as error:
        return Finding(what, "failed", str(error))
    return Finding(what, f"{result} ({time.perf_counter() - began:.1f} s)")


def _train_briefly() -> str:
    """Two workers, two epochs of digits, one averaging, and a prediction."""
    config = build_config({"run": {"workers": 2, "epochs": 2}, "topology": {"groups": 1}})
    splits = load_data(config)
    result = Engine(build_experiment(resolve(config, splits), splits), LocalBackend()).run()
    totals = result.state.totals
    accuracy = result.ensemble.evaluate(splits.test).accuracy or 0.0
    rate = totals.worker_samples / totals.train_s
    return f"trained digits to {accuracy:.2f} at {rate:,.0f} worker-samples/s"
