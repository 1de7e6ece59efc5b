"""How a synchronisation scales: seconds and bytes for 2 to 64 workers by plan, and a model fitted to them.

    python benchmarks/scale.py [--quick] [--json FILE]        measure, fit, predict
    python benchmarks/scale.py --from-json FILE               fit and predict from what was measured

Nothing is trained. A few actors stand for many workers each: they put random deltas (d,) fp32 into the
object store, in the pieces that the plan asks for, add up for the plan as workers' actors do, and read the
new weights. A synchronisation is timed from the moment all updates are in the store to the moment every
worker has copied the new weights; the code is the backend's own (`spread`, `Board`). Plans take turns, and
all must give the same bits.

Bytes are counted from the outside, in a round that is not timed: of every call its references, of the
driver every `get` and `put`, each with the size of the array behind it. A worker is a process; so is each
place that adds up (calls for the same place are the same process), as on a cluster with a process for each.
What is read in place, without a copy, counts as read: on a cluster it would have crossed a link.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import ray
import torch
from ray._private.internal_api import memory_summary

from hqde.aggregation import BLOCK, Combination, FedAvg, Mean, RemoteDelta, shares_of
from hqde.backends.on_ray import board as board_module
from hqde.backends.on_ray import spreading
from hqde.backends.on_ray.board import Board
from hqde.backends.on_ray.shipping import checksum
from hqde.backends.on_ray.worker_actor import Pieces
from hqde.topology import Plan, shard_bounds, tree_depth
from scale_model import report

WORKERS = (2, 4, 8, 16, 32, 64)
SIZES = (100_000, 1_000_000, 5_000_000, 20_000_000)
QUICK_WORKERS, QUICK_SIZES = (2, 8, 32), (100_000, 1_000_000)
PAIRED = (16, 11_173_962)  # workers, and the coordinates of a ResNet-18 for ten classes
FAN_IN = 8
MOST_ROWS_BYTES = 6_000_000_000
DRAIN_BYTES, DRAIN_S = 500_000_000, 2.0  # Ray frees a round's rows up to a second later; else they pile up
SHARE_OF_STORE = 0.6  # of the object store that rows may fill: from 0.8 on Ray writes objects to disk


class Host:
    """Stands for several workers; does for each, in turn, what its actor does between two rounds."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._noise = self._model = np.empty(0, dtype=np.float32)

    def deliver(self, worker: int, size: int, bounds: Sequence[tuple[int, int]]) -> list[Any]:
        """A worker's delta in pieces, and first their checksums."""
        if len(self._noise) != size:
            self._noise = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
            self._model = np.empty(size, dtype=np.float32)
        delta = self._noise * np.float32(1 + worker / 7)
        pieces = [delta[first:last] for first, last in bounds]
        return [tuple(map(checksum, pieces)), *pieces]

    def take(self, *start: np.ndarray) -> None:
        """The new weights, copied into a model."""
        whole = start[0] if len(start) == 1 else np.concatenate(start)
        np.copyto(self._model, whole)

    def reduce(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A step of an aggregation, as ``WorkerActor.reduce`` does it."""
        return function(*arguments)


class Crowd:
    """All workers, on a few hosts."""

    def __init__(self, num_hosts: int) -> None:
        self.hosts = [ray.remote(num_cpus=0)(Host).remote() for _ in range(num_hosts)]

    def deliver(self, num_workers: int, size: int, bounds: Any) -> list[RemoteDelta]:
        """Every worker's update; all are in the store when this returns."""
        made = [
            self._host(worker).deliver.options(num_returns=1 + len(bounds)).remote(worker, size, bounds)
            for worker in range(num_workers)
        ]
        checks = ray.get([first for first, *_ in made])
        return [
            RemoteDelta(
                size, torch.float32, 0, 0.0, Pieces(worker, tuple(bounds), checks[worker], tuple(refs))
            )
            for worker, (_, *refs) in enumerate(made)
        ]

    def take(self, num_workers: int, refs: Sequence[Any]) -> None:
        """Every worker takes the new weights; returns when all have."""
        ray.get([self._host(worker).take.remote(*refs) for worker in range(num_workers)])

    # What `spread` needs of a crew:

    def submit(self, place: int, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
        """Run a step on one of the hosts."""
        return self._host(place).reduce.options(num_returns=num_returns).remote(function, *arguments)

    def roll_call(self) -> None:
        """Nobody dies here."""

    def send_again(self, worker: int) -> Any:
        """Nothing is lost here."""
        raise AssertionError(f"the update of worker {worker} was lost")

    def _host(self, number: int) -> Any:
        return self.hosts[number % len(self.hosts)]


class Traffic:
    """Stands between the code under test and Ray, and notes which process reads and writes which object."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._noted: list[tuple[str, Any]] = []

    def note(self, process: str, refs: Sequence[Any]) -> None:
        """A process reads or writes these."""
        self._noted += [(process, ref) for ref in refs if isinstance(ref, ray.ObjectRef)]

    def submit(self, place: int, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
        """As the crowd's."""
        made = self._crowd.submit(place, function, *arguments, num_returns=num_returns)
        self.note(f"reducer {place}", [*arguments, *(made if isinstance(made, list) else [made])])
        return made

    def roll_call(self) -> None:
        """As the crowd's."""

    def send_again(self, worker: int) -> Any:
        """As the crowd's."""
        return self._crowd.send_again(worker)

    def get(self, refs: Any, **options: Any) -> Any:
        """The driver reads."""
        self.note("driver", refs if isinstance(refs, list) else [refs])
        return ray.get(refs, **options)

    def put(self, value: Any) -> Any:
        """The driver writes."""
        ref = ray.put(value)
        self.note("driver", [ref])
        return ref

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    def by_role(self) -> dict[str, int]:
        """Bytes through the busiest process of each role."""
        sizes: dict[Any, int] = {}
        through: dict[str, int] = defaultdict(int)
        for process, ref in self._noted:
            if ref not in sizes:
                sizes[ref] = ray.get(ref).nbytes
            through[process] += sizes[ref]
        roles: dict[str, int] = {"driver": 0, "reducer": 0, "worker": 0}
        for process, total in through.items():
            role = process.split()[0]
            roles[role] = max(roles[role], total)
        return roles


class Course:
    """One plan for one (n, d), round after round: the new weights of a round are the base of the next."""

    def __init__(self, crowd: Crowd, name: str, num_workers: int, size: int) -> None:
        self.name, self.n, self.d = name, num_workers, size
        wanted = {"sharded": 2, "sharded-n": num_workers}.get(name, 1)
        self.bounds = shard_bounds(size, wanted, block=BLOCK)
        kind: Any = name.removesuffix("-n")
        self._plan = Plan(kind, FAN_IN, self.bounds)
        self._crowd, self._board = crowd, Board()
        self._base = torch.zeros(size)
        self._board.pieces(self._base, self.bounds)
        self.seconds: list[float] = []
        self.bytes: dict[str, int] = {}

    def count(self) -> int:
        """A round that is not timed: counts bytes; returns a checksum of the new weights."""
        traffic = Traffic(self._crowd)
        with patch.object(spreading, "ray", traffic), patch.object(board_module, "ray", traffic):
            self._round(traffic)
        self.bytes = traffic.by_role()
        return checksum(self._base.numpy())

    def time(self) -> None:
        """A round that is."""
        self.seconds.append(self._round(None))

    def _round(self, traffic: Traffic | None) -> float:
        if 4 * self.n * self.d > DRAIN_BYTES:
            time.sleep(DRAIN_S)
        self._board.turn()
        rows = self._crowd.deliver(self.n, self.d, self.bounds)
        began = time.perf_counter()
        task = Combination(rows, shares_of([1] * self.n), Mean(), FedAvg(), self._base, {}, self.d)
        hands = self._crowd if traffic is None else traffic
        combined = spreading.spread(task, self._plan, self._board, range(self.n), hands)
        start = self._board.pieces(combined.vector)
        self._crowd.take(self.n, start)
        seconds = time.perf_counter() - began
        self._base = combined.vector
        if traffic is not None:
            for worker, row in enumerate(rows):
                traffic.note(f"worker {worker}", [*row.handle.refs, *start])
        return seconds

    def record(self) -> dict[str, Any]:
        """What was measured."""
        depth = tree_depth(self.n, FAN_IN) if self.name == "tree" else None
        return {
            "workers": self.n,
            "coordinates": self.d,
            "plan": self.name,
            "shards": len(self.bounds),
            "depth": depth,
            "seconds": self.seconds,
            "bytes": self.bytes,
        }


def courses_of(crowd: Crowd, num_workers: int, size: int, names: Sequence[str]) -> list[Course]:
    """The plans for one (n, d), after a round each that counts bytes and compares bits."""
    courses = [Course(crowd, name, num_workers, size) for name in names]
    sums = {course.name: course.count() for course in courses}
    if len(set(sums.values())) > 1:
        raise SystemExit(f"{num_workers} workers, {size} coordinates: plans give other bits: {sums}")
    return courses


def spilled() -> int:
    """MiB that Ray has moved from the object store to disk so far."""
    told = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"Spilled (\d+) MiB", told)
    return int(found[1]) if found else 0


def measure(
    crowd: Crowd, workers: Sequence[int], sizes: Sequence[int], rounds: int, most_bytes: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every (n, d) that fits, every plan; and what was left out."""
    records, skipped = [], []
    for size in sizes:
        for number in workers:
            rows = 4 * number * size
            if rows > most_bytes:
                skipped.append(
                    f"{number} workers × {size:,} coordinates: {rows / 1e9:.1f} GB of rows, the store has "
                    f"room for {most_bytes / 1e9:.1f} GB"
                )
                continue
            before = spilled()
            names = ["flat", "tree", "sharded", *(["sharded-n"] if number > 2 and size > 2 * BLOCK else [])]
            courses = courses_of(crowd, number, size, names)
            for turn in range(rounds):
                for course in courses[turn % len(courses) :] + courses[: turn % len(courses)]:
                    course.time()
            if spilled() > before:
                skipped.append(
                    f"{number} workers × {size:,} coordinates: Ray wrote objects to disk meanwhile"
                )
                continue
            records += [course.record() for course in courses]
            told = ", ".join(f"{c.name} {median(c.seconds):.3f}" for c in courses)
            print(f"{number} workers, {size:,} coordinates: {told} s", flush=True)
    return records, skipped


def pair(crowd: Crowd, rounds: int, most_bytes: float) -> list[dict[str, Any]]:
    """Flat, tree and sharded in turns, round after round, for 16 workers of a ResNet-18."""
    number, size = PAIRED
    if 4 * number * size > most_bytes:
        return []
    courses = courses_of(crowd, number, size, ("flat", "tree", "sharded"))
    for turn in range(rounds):
        for course in courses[turn % 3 :] + courses[: turn % 3]:
            course.time()
        print(f"paired round {turn + 1}: {', '.join(f'{c.name} {c.seconds[-1]:.3f}' for c in courses)} s")
    return [course.record() for course in courses]


def main() -> int:
    """Measure or read, then fit, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few small cases, to see that it works")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each plan and case")
    parser.add_argument("--pairs", type=int, default=9, help="rounds of the paired run")
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    parser.add_argument("--from-json", type=Path, help="measure nothing; read what --json wrote")
    arguments = parser.parse_args()
    if arguments.from_json:
        print(report(json.loads(arguments.from_json.read_text())))
        return 0
    free = psutil.virtual_memory().available
    store = min(9_500_000_000, int(0.45 * free))
    most = min(MOST_ROWS_BYTES, SHARE_OF_STORE * store)
    cores = len(os.sched_getaffinity(0))
    ray.init(
        address="local",
        num_cpus=cores,
        object_store_memory=store,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    torch.set_num_threads(1)
    crowd = Crowd(cores)
    quick = arguments.quick
    measured, skipped = measure(
        crowd, QUICK_WORKERS if quick else WORKERS, QUICK_SIZES if quick else SIZES, arguments.rounds, most
    )
    result = {
        "cores": cores,
        "store_bytes": store,
        "ray": ray.__version__,
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0] if math.isfinite(os.getloadavg()[0]) else None,
        "measured": measured,
        "skipped": skipped,
        "paired": [] if quick else pair(crowd, arguments.pairs, most),
    }
    ray.shutdown()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\n" + report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
