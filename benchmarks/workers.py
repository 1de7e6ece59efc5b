"""One worker or many on one machine: speed, what a round costs beside training, and peak memory.

    python benchmarks/workers.py [--data cifar10:DIR] [--workers 1 2 4 8 16 32 64] [--repeats 3]
                                 [--model cnn] [--precision bf16-mixed]

FedAvg of n workers, 2 048 images each, as many rounds as make 131 072 images. Every run is a process of
its own; numbers of workers take turns. *Beside training* is the share of a round in aggregating, encoding,
committing and checkpoints. *Memory* is the peak above what the process took before the run (imports, images,
compiled code), over what must be there: for each worker weights, optimizer state, committed weights and the
update in flight, and for each lane gradients and the activations of a step, as measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from statistics import median
from typing import Any

import psutil

from hqde.backends import LocalBackend
from hqde.data import Splits, load_splits
from hqde.errors import HqdeError
from hqde.models import model_spec
from hqde.monitoring import peak_rss_bytes
from hqde.rounds import Engine, Experiment, RoundLog
from hqde.topology import Topology
from hqde.training import Recipe, Worker
from hqde.training.memory import step_bytes
from planner import random_rows

IMAGES = 2_048  # of each worker
LEAST_SAMPLES = 131_072  # of a run, so that its one look at the validation rows weighs the same in all
BESIDE = ("aggregate", "encode", "commit", "checkpoint")


def splits_of(data: str | None) -> Splits:
    """Some images of CIFAR-10, or random ones of its shape."""
    if data is not None:
        return load_splits(data, max_train=2 * IMAGES, validation_fraction=0.5)
    return random_rows(IMAGES, (3, 32, 32))


def run(data: str | None, workers: int, model: str, precision: str) -> dict[str, Any]:
    """Train, in this process."""
    splits = splits_of(data)
    experiment = Experiment(
        splits=splits,
        model=model_spec(model, input_shape=(3, 32, 32), num_outputs=10),
        num_workers=workers,
        epochs=max(1, LEAST_SAMPLES // (IMAGES * workers)),
        recipe=Recipe(precision=precision),  # type: ignore[arg-type]
        topology=Topology(groups=1),
        evaluate_every=10_000,
        calibrate=False,
    )
    few = replace(experiment.recipe, batch_size=4)
    tiny = replace(experiment, splits=random_rows(16, (3, 32, 32)), num_workers=2, epochs=1, recipe=few)
    Engine(tiny, LocalBackend()).run()  # what libraries import and compile when they are first used
    backend, log, before = LocalBackend(), RoundLog(), psutil.Process().memory_info().rss
    Engine(experiment, backend, listener=log).run()
    peak, lanes = peak_rss_bytes() - before, backend.seating.lanes
    worker = Worker(experiment.worker_specs()[0], splits.train)
    size = worker.layout.size
    last = log.records[-1]
    return {
        "samples_per_s": sum(w.samples or 0 for r in log.records for w in r.workers)
        / sum(r.wall_s for r in log.records),
        "round_s": last.wall_s,
        "beside": sum(last.phases[name] for name in BESIDE) / last.wall_s,
        "peak_bytes": peak,
        "needed_bytes": workers * size * (12 + 8) + lanes * (4 * size + step_bytes(worker)),
    }


def table(found: dict[int, list[dict[str, Any]]]) -> str:
    """Medians by number of workers."""
    heads = (
        "workers | worker-samples/s | of the median | round s | beside training | peak MiB | needed | ratio"
    )
    lines = [f"| {heads} |", "|---" * 8 + "|"]
    speeds = {workers: median(r["samples_per_s"] for r in runs) for workers, runs in found.items()}
    middle = median(speeds.values())
    for workers, runs in found.items():
        of = {key: median(r[key] for r in runs) for key in runs[0]}
        lines.append(
            f"| {workers} | {speeds[workers]:,.0f} | {speeds[workers] / middle:.2f} | {of['round_s']:.2f} | "
            f"{100 * of['beside']:.2f} % | {of['peak_bytes'] / 2**20:.0f} | "
            f"{of['needed_bytes'] / 2**20:.0f} | {of['peak_bytes'] / of['needed_bytes']:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, each number of workers in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="cifar10:DIR; left out, random images of the same shape")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--alone", type=int, help="measure this number of workers here, and print JSON")
    given = parser.parse_args()
    try:
        if given.alone:
            print(json.dumps(run(given.data, given.alone, given.model, given.precision)))
            return 0
    except HqdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found: dict[int, list[dict[str, Any]]] = {workers: [] for workers in given.workers}
    settings = ["--model", given.model, "--precision", given.precision]
    settings += ["--data", given.data] if given.data else []
    for _ in range(given.repeats):
        for workers, runs in found.items():
            command = [sys.executable, __file__, "--alone", str(workers), *settings]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return done.returncode
            runs.append(json.loads(done.stdout))
            print(f"{workers}: {done.stdout.strip()}", flush=True)
    print(f"\n{table(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
