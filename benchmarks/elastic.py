"""Replica annealing against independent members, FedAvg and groups, at equal cost, on CIFAR-10.

    python benchmarks/elastic.py --data cifar10:DIR [--jobs 1] [--out elastic.json] [--seeds 3]

Every row trains the same small network (`cnn` of two stages) with four workers, the same recipe and the same
images through workers (forward, backward and step); only who is drawn to whom, and how far, differs. Rows are
dealt out anew in every epoch, a quarter to each worker (`split`), so that a round is a quarter of a pass.
With `--deals replicate` a round is a whole pass, and there are a quarter as many. Seeds are paired. Each run
has one torch thread. Results are kept in `--out` as they come, and a second call goes on where the first
stopped.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from statistics import mean

import torch

from grid import paired, run_grid, spread
from hqde.backends import LocalBackend
from hqde.data import Augmentation, Replicate, Split, Splits, load_splits
from hqde.errors import HqdeError
from hqde.models import model_spec
from hqde.rounds import Engine, Experiment
from hqde.topology import Elastic, Topology
from hqde.training import Diversity, Recipe

TRAIN_IMAGES = 5_000
VALIDATION_FRACTION = 0.1  # held out on top of the training images, for the temperature
WORKERS = 4
PASSES = 4  # of every worker over all images; each makes as many steps however the rows are dealt out
FIGURES = ("accuracy", "nll", "calibrated_nll", "effective_members", "disagreement", "mean_member_accuracy")

ROWS = {
    "independent": ("4 independent members", Topology()),
    "fedavg": ("FedAvg, one member", Topology(groups=1)),
    "groups": ("two groups of two", Topology(groups=2)),
    "global": ("4 members, averaged until three quarters", Topology(global_every=1, global_until=0.75)),
    "gather": (
        "elastic, one member: pull 0.1 → 1",
        Topology(groups=1, elastic=Elastic(group_pull=0.1, group_pull_end=1.0)),
    ),
    "release": (
        "elastic, 4 members: pull 1 → 0",
        Topology(elastic=Elastic(global_pull=1.0, global_pull_end=0.0)),
    ),
    "loose": ("elastic, 4 members: pull 0.1", Topology(elastic=Elastic(global_pull=0.1))),
}
DEALS = {"replicate": (Replicate(), PASSES), "split": (Split(), PASSES * WORKERS)}

PAIRED = ("accuracy", "nll", "calibrated_nll")

_SPLITS: Splits | None = None


def experiment_for(row: str, deal: str, seed: int, splits: Splits) -> Experiment:
    """One row of the table, as an experiment."""
    partitioner, epochs = DEALS[deal]
    return Experiment(
        splits=splits,
        model=model_spec(
            "cnn",
            input_shape=splits.schema.input_shape,
            num_outputs=splits.schema.num_classes,
            options={"channels": [16, 32]},
        ),
        num_workers=WORKERS,
        epochs=epochs,
        recipe=Recipe(batch_size=64, precision="bf16-mixed"),
        topology=ROWS[row][1],
        diversity=Diversity(learning_rate_spread=0.0, dropout_spread=0.0),
        partitioner=partitioner,
        augmentation=Augmentation(flip=True),
        evaluate_every=10_000,
        seed=seed,
    )


def run_one(row: str, deal: str, seed: int) -> dict[str, float]:
    """Train one row with one seed and judge it on the test file."""
    assert _SPLITS is not None
    began = time.perf_counter()
    result = Engine(experiment_for(row, deal, seed, _SPLITS), LocalBackend()).run()
    wall_s = time.perf_counter() - began
    members, targets = result.ensemble.predict_labelled(_SPLITS.test)
    raw = result.ensemble.with_temperature(1.0).evaluate_predictions(members, targets)
    calibrated = result.ensemble.evaluate_predictions(members, targets)
    several = len(result.ensemble) > 1
    return {
        "accuracy": raw.accuracy,
        "nll": raw.nll,
        "calibrated_nll": calibrated.nll,
        "effective_members": raw.diversity["effective_members"] if several else 1.0,
        "disagreement": raw.diversity["disagreement"] if several else 0.0,
        "mean_member_accuracy": raw.mean_member_accuracy,
        "worker_samples": result.state.totals.worker_samples,
        "wall_s": wall_s,
    }


def prepare_process(source: str) -> None:
    """Load the data once per process and keep it to one thread."""
    global _SPLITS
    torch.set_num_threads(1)
    _SPLITS = load_splits(
        source,
        max_train=math.ceil(TRAIN_IMAGES / (1 - VALIDATION_FRACTION)),
        validation_fraction=VALIDATION_FRACTION,
    )


def table(results: dict[str, dict[str, float]], deal: str) -> str:
    """One way to deal out the rows as a Markdown table: mean ± standard deviation over the seeds."""
    heads = ("accuracy", "NLL", "NLL after T", "effective members", "disagreement", "accuracy of a member")
    lines = [f"| `{deal}` | seeds | {' | '.join(heads)} | s |", "|---" * 9 + "|"]
    for row, (name, _) in ROWS.items():
        runs = [value for key, value in results.items() if key.startswith(f"{row}/{deal}/")]
        if runs:
            cells = [spread([run[figure] for run in runs]) for figure in FIGURES]
            seconds = mean(run["wall_s"] for run in runs)
            lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="cifar10:DIR")
    parser.add_argument("--out", type=Path, default=Path("elastic.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--deals", nargs="+", default=["split"], choices=list(DEALS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    if arguments.data is None:
        print("elastic: give the folder of CIFAR-10 with --data cifar10:DIR; nothing was measured")
        return 0
    cells = [
        (row, deal, seed)
        for seed in range(arguments.seeds)
        for deal in arguments.deals
        for row in arguments.rows
    ]
    try:
        results = run_grid(
            run_one,
            cells,
            out=arguments.out,
            jobs=arguments.jobs,
            prepare=prepare_process,
            prepared_with=(arguments.data,),
        )
    except HqdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for deal in arguments.deals:
        print("\n" + table(results, deal) + "\n")
        for row, others in (("gather", ("fedavg",)), ("release", ("independent", "global"))):
            for other in others:
                print(f"{row} - {other}, {deal}: {paired(results, deal, row, other, PAIRED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
