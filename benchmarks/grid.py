"""A grid of trainings, some at a time, that a second call goes on with; and what its seeds say."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hqde.rounds.run_directory import write_text

Results = dict[str, dict[str, Any]]


def run_grid(
    run: Callable[..., dict[str, Any]],
    cells: Sequence[tuple[Any, ...]],
    *,
    out: Path,
    jobs: int,
    prepare: Callable[..., None],
    prepared_with: tuple[Any, ...] = (),
) -> Results:
    """Call ``run(*cell)`` for every cell that ``out`` does not hold yet, in processes of their own.

    Args:
        run: one training; gives plain JSON.
        cells: arguments; joined by ``/`` they name the result.
        out: JSON file of all results so far, written anew after each.
        jobs: how many go side by side.
        prepare, prepared_with: called once in each process, with these arguments.

    Returns:
        everything that ``out`` holds.
    """
    results: Results = json.loads(out.read_text()) if out.exists() else {}
    missing = {name: cell for cell in cells if (name := "/".join(map(str, cell))) not in results}
    began = time.perf_counter()
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=prepare, initargs=prepared_with
    ) as pool:
        calls = {pool.submit(run, *cell): name for name, cell in missing.items()}
        for number, call in enumerate(as_completed(calls), start=1):
            name, found = calls[call], call.result()
            results[name] = found
            write_text(out, json.dumps(results, indent=1) + "\n")
            print(f"{number}/{len(calls)} {name}: {found} ({time.perf_counter() - began:.0f} s)", flush=True)
    return results


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def paired(
    results: dict[str, dict[str, float]], condition: object, row: str, other: str, figures: Sequence[str]
) -> str:
    """The differences of two rows under one condition, seed by seed.

    Args:
        results: by ``row/condition/seed``.
        condition, row, other: of which.
        figures: to compare.
    """
    parts = []
    for figure in figures:
        each = [
            results[key][figure] - results[key.replace(f"{row}/", f"{other}/", 1)][figure]
            for key in sorted(results)
            if key.startswith(f"{row}/{condition}/") and key.replace(f"{row}/", f"{other}/", 1) in results
        ]
        if each:
            parts.append(f"{figure} {mean(each):+.4f} ({', '.join(f'{value:+.4f}' for value in each)})")
    return "; ".join(parts) or "no pairs"
