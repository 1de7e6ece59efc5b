"""A grid of trainings, some at a time; what is done is kept, and a second call goes on from there."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
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
