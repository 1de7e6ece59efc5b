"""How fast robust aggregation is, beside ByzFL, Flower and the primitives of PyTorch and NumPy.

    python benchmarks/robust_speed.py [--quick] [--threads 1 2] [--out robust_speed.json]

Every line is one rule at one size. All ways to compute it take turns, of a call or of 20 ms, so that whatever
else the machine does hits them alike; the table has medians. `passes` is time over the time of reading the
rows once (a sum over all of them), `extra` the most memory that was held beside the rows, over the size of
the rows, measured in a process of its own. ByzFL 0.0.11 and flwr are compared with where they can be
imported; of ByzFL only its aggregators are loaded. What they compute differs in places: ByzFL's geometric
median stops after three steps, HQDE's goes on until it is within 1e-7 of the optimum.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from hqde.aggregation import GeometricMedian, Mean, NearestNeighbourMixing, Rule, make_rule
from hqde.monitoring import peak_rss_bytes

SIZES = ((16, 65_536), (64, 65_536), (8, 11_170_000), (16, 11_170_000), (100, 1_000_000))
QUICK_SIZES = ((16, 65_536), (64, 65_536))
SECONDS = 6.0  # spent on one line, at least one call each
MOST_CALLS = 15
TURN_S = 0.02  # a turn is one call, or as many as fit: the first one finds cold caches
REST_S = 0.005  # before a turn: the threads of the one before spin for some time before they sleep

Way = Callable[[torch.Tensor], object]


class Line(NamedTuple):
    """One rule at one size and thread count."""

    rule: str
    num_rows: int
    size: int
    threads: int
    seconds: dict[str, float]
    read_s: float
    extra: float | None


@cache
def byzfl() -> tuple[ModuleType, ModuleType] | None:
    """ByzFL's aggregators and pre-aggregators, without the rest of it, which wants a plotting library."""
    found = importlib.util.find_spec("byzfl")
    if found is None:
        return None
    package = ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["byzfl"] = package
    names = ("byzfl.aggregators.aggregators", "byzfl.aggregators.preaggregators")
    first, second = (importlib.import_module(name) for name in names)
    return first, second


@cache
def flower() -> ModuleType | None:
    """Flower's aggregation functions, if it and what it imports is there."""
    try:
        return importlib.import_module("flwr.server.strategy.aggregate")
    except ImportError:
        return None


def rules(num_rows: int) -> dict[str, Rule]:
    """What is measured, for a quarter of the workers bad."""
    faults = num_rows // 4
    return {
        "mean": Mean(),
        "coordinate_median": make_rule("coordinate_median"),
        "trimmed_mean": make_rule("trimmed_mean", num_byzantine=faults),
        "geometric_median": GeometricMedian(),
        "multi_krum": make_rule("multi_krum", num_byzantine=faults),
        "nnm >> geometric_median": NearestNeighbourMixing(faults) >> GeometricMedian(),
    }


def ways(name: str, num_rows: int, size: int) -> dict[str, Way]:
    """All ways to compute a rule; those that would need more memory than there is are left out."""
    faults = num_rows // 4
    shares = torch.full((num_rows,), 1.0 / num_rows, dtype=torch.float64)
    rule = rules(num_rows)[name]
    found: dict[str, Way] = {"hqde": lambda rows: rule(rows, shares)}
    if name == "mean":
        found["torch"] = lambda rows: rows.mean(dim=0)
    if name == "coordinate_median":
        found["torch"] = lambda rows: rows.median(dim=0)  # the lower one
        found["numpy"] = lambda rows: np.median(rows.numpy(), axis=0)
    if name == "trimmed_mean":
        found["torch"] = lambda rows: rows.sort(dim=0).values[faults:-faults].mean(dim=0)
    if (parts := byzfl()) is not None:
        theirs, before = parts
        mixed = num_rows * (num_rows - faults) * size * 4 < 8e9  # what its NNM holds at once
        makers: dict[str, Callable[[], Way]] = {
            "mean": theirs.Average,
            "coordinate_median": theirs.Median,
            "trimmed_mean": lambda: theirs.TrMean(faults),
            "geometric_median": theirs.GeometricMedian,
            "multi_krum": lambda: theirs.MultiKrum(faults),
        }
        if name in makers:
            found["byzfl"] = makers[name]()
        elif mixed:
            mixing, middle = before.NNM(faults), theirs.GeometricMedian()
            found["byzfl"] = lambda rows: middle(mixing(rows))
    if (flwr := flower()) is not None:

        def results(rows: torch.Tensor) -> list[tuple[list[np.ndarray], int]]:
            return [([row.numpy()], 1) for row in rows]

        if name == "mean":
            found["flwr"] = lambda rows: flwr.aggregate(results(rows))
        if name == "coordinate_median":
            found["flwr"] = lambda rows: flwr.aggregate_median(results(rows))
        if name == "trimmed_mean":
            found["flwr"] = lambda rows: flwr.aggregate_trimmed_avg(results(rows), faults / num_rows)
        if name == "multi_krum":
            found["flwr"] = lambda rows: flwr.aggregate_krum(results(rows), faults, num_rows - faults)
    return found


def some_rows(num_rows: int, size: int) -> torch.Tensor:
    """Deltas of workers that roughly agree."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, size, generator=draws)
    rows += torch.randn(size, generator=draws)
    return rows


def measure(name: str, rows: torch.Tensor, threads: int, budget_s: float, clock: Callable[[], float]) -> Line:
    """Medians of calls that take turns."""
    torch.set_num_threads(threads)
    num_rows, size = rows.shape
    everyone = ways(name, num_rows, size) | {"read": lambda rows: rows.sum()}
    taken: dict[str, list[float]] = {way: [] for way in everyone}
    began = time.perf_counter()
    for call in range(MOST_CALLS + 1):
        for way, compute in everyone.items():
            if call > 1 and sum(taken[way]) > budget_s / len(everyone):
                continue
            rested = time.perf_counter() + REST_S
            while time.perf_counter() < rested:
                pass  # a processor that sleeps itself is slow when it wakes
            over = time.perf_counter() + TURN_S
            while True:
                mark = clock()
                compute(rows)
                taken[way].append(clock() - mark)
                if time.perf_counter() > over:
                    break
        if call and time.perf_counter() - began > budget_s:
            break
    seconds = {way: median(times[1:] or times) for way, times in taken.items()}
    read_s = seconds.pop("read")
    return Line(name, num_rows, size, threads, seconds, read_s, extra_memory(name, num_rows, size))


def extra_memory(name: str, num_rows: int, size: int) -> float | None:
    """Peak memory beside rows and value, over the memory of the rows; ``None`` where rows are too small."""
    if num_rows * size < 1 << 25:
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, num_rows, size))


def _peak(name: str, num_rows: int, size: int) -> float:
    torch.set_num_threads(1)
    rule = rules(num_rows)[name]
    shares = torch.full((num_rows,), 1.0 / num_rows, dtype=torch.float64)
    rule(torch.randn(num_rows, 1 << 15), shares)  # what libraries allocate once
    rows = torch.empty(num_rows, size).normal_()
    before = peak_rss_bytes()
    rule(rows, shares)
    after = peak_rss_bytes()
    return max(0.0, (after - before) - 4.0 * size) / (4.0 * num_rows * size)


def table(lines: list[Line]) -> str:
    """Markdown: milliseconds, how much slower the others are, passes over the data, extra memory."""
    others = ("byzfl", "flwr", "torch", "numpy")
    head = ["n", "d", "threads", "rule", "hqde ms", "passes", *(f"{o} ms (×)" for o in others), "extra"]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in lines:
        ours = line.seconds["hqde"]
        cells = [str(line.num_rows), f"{line.size:,}", str(line.threads), line.rule, f"{1e3 * ours:.2f}"]
        cells.append(f"{ours / line.read_s:.1f}")
        for other in others:
            theirs = line.seconds.get(other)
            cells.append("–" if theirs is None else f"{1e3 * theirs:.1f} ({theirs / ours:.1f})")
        cells.append("–" if line.extra is None else f"{line.extra:.2f}")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a second for each line")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine; one thread only")
    parser.add_argument("--sizes", nargs="+", metavar="NxD", help="such as 16x65536, in place of the usual")
    parser.add_argument("--rules", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, help="JSON of all lines")
    args = parser.parse_args()
    if args.processor_time and args.threads != [1]:
        parser.error("processor time adds up over threads: give --threads 1 with it")
    clock = time.process_time if args.processor_time else time.perf_counter
    lines = []
    sizes = QUICK_SIZES if args.quick else SIZES
    if args.sizes:
        sizes = tuple((int(n), int(d)) for n, _, d in (size.partition("x") for size in args.sizes))
    for num_rows, size in sizes:
        rows = some_rows(num_rows, size)
        for name in args.rules or rules(num_rows):
            for threads in args.threads:
                lines.append(measure(name, rows, threads, 1.0 if args.quick else SECONDS, clock))
                print(f"{name} {num_rows} × {size}, {threads} thread(s)", file=sys.stderr)
    print(table(lines))
    if args.out is not None:
        args.out.write_text(json.dumps([line._asdict() for line in lines], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
