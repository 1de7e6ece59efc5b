"""The planner behind ``hqde plan`` and ``--backend auto``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hqde.backends import seat_workers
from hqde.cli.console import err
from hqde.config import Config, build_experiment, resolve
from hqde.data import Splits
from hqde.planning import (
    PlanCache,
    Probe,
    RunPlanner,
    SpeedPlan,
    describe_profile,
    profile_steps,
    run_seconds,
)
from hqde.rounds import Experiment, RunDirectory


def make_plan(
    config: Config, splits: Splits, *, bf16: bool = False, fresh: bool = False, quiet: bool = False
) -> SpeedPlan:
    """A plan for a run, with a line for each candidate that is tried.

    Args:
        config: of the run; its backend does not count.
        splits: its data.
        bf16: try bfloat16 beside the configured precision.
        fresh: try again what was found out before, and do not keep it.
        quiet: print nothing.
    """
    experiment = build_experiment(resolve(config, splits), splits)

    def say(found: Probe) -> None:
        if not quiet:
            rate = "no" if found.samples_per_s is None else f"{found.samples_per_s:,.0f}"
            err.print(f"tried {found.candidate.name}: {rate} worker-samples/s", soft_wrap=True)

    planner = RunPlanner(None if fresh else PlanCache(), precisions=("bf16-mixed",) if bf16 else ())
    return planner.plan(experiment, on_probe=say)


def write_profile(directory: RunDirectory, experiment: Experiment, config: Config) -> Path:
    """Profile some steps of a finished run, and leave trace and summary in its directory."""
    folder = directory.path / "profile"
    run = config.run
    seating = seat_workers(run.workers, lanes=run.lanes, threads=run.threads)
    steps = profile_steps(experiment, threads=seating.threads, trace=folder / "trace.json")
    metrics = json.loads(directory.metrics_file.read_text())
    text = describe_profile(
        steps,
        run_seconds(directory.history_file),
        lanes=seating.lanes if run.backend == "local" else run.workers,
        worker_samples_per_s=metrics["train"]["worker_samples_per_s"],
    )
    summary = folder / "summary.txt"
    summary.write_text(text)
    return summary


def take_quickest(config: Config, splits: Splits, *, quiet: bool) -> tuple[Config, float | None]:
    """The configuration with the quickest backend in place of ``auto``, and the seconds it should take.

    The precision stays as it is: another one gives other weights.
    """
    if config.run.backend != "auto":
        return config, None
    found = make_plan(config, splits, quiet=quiet)
    chosen = found.chosen
    if not quiet:
        for note in found.notes:
            err.print(note, soft_wrap=True)
        err.print(f"planned: {chosen.name}, {found.predicted_s:.1f} s", soft_wrap=True)
    stacked = chosen.stacked or config.run.stacked
    run = replace(
        config.run,
        backend=chosen.backend,
        lanes=chosen.lanes,
        threads=chosen.threads,
        stacked=stacked,
    )
    return replace(config, run=run), found.predicted_s
