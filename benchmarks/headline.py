"""What an ensemble of groups buys, at equal cost: CIFAR-10, six ways to spend the same worker-samples.

    python benchmarks/headline.py --data cifar10:DIR [--jobs 2] [--out results.json] [--seeds 3]

Every row trains the same network (`cnn`, 0.11 M parameters) with the same recipe on the same 20 000
training images; only who is averaged with whom, and when, differs. A step of a group takes 128
images, split evenly over its workers; the row that never synchronises splits each batch over all
four, as v0.1.4 did. A budget counts images through workers (forward, backward and step): 160 000 is
eight passes of one model, or two passes of each of four. Seeds are paired: seed s of one row is
compared with seed s of another. Each run has one torch thread; `--jobs` runs go side by side.
Results are kept in `--out` as they come, and a second call goes on where the first stopped.
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
from hqde.topology import Topology
from hqde.training import Diversity, Recipe

TRAIN_IMAGES = 20_000
VALIDATION_FRACTION = 0.1  # held out on top of the training images, for the temperature
BUDGETS = (160_000, 640_000)
PAIRED = ("accuracy", "nll", "ece")
FIGURES = ("accuracy", "nll", "ece", "calibrated_nll", "calibrated_ece", "wall_s")

ROWS = {
    "single": "one single model",
    "never": "4 workers on split batches, never synchronised (v0.1.4)",
    "fedavg": "4 workers on split batches, FedAvg each epoch (v0.1.5)",
    "independent": "4 independent members",
    "groups": "2×2: two groups of two",
    "branching": "branching: one trunk, then 4 members",
}
BATCH = {"single": 128, "never": 32, "fedavg": 32, "independent": 128, "groups": 64, "branching": 128}
# Together for the larger part of a short run and the smaller part of a long one.
BRANCH_AT = {160_000: 0.75, 640_000: 0.25}

_SPLITS: Splits | None = None


def experiment_for(row: str, budget: int, seed: int, splits: Splits) -> Experiment:
    """One row of the table, as an experiment."""
    passes = budget // TRAIN_IMAGES
    workers, epochs = (1, passes) if row == "single" else (4, passes)
    partitioner = Split()
    if row == "independent":
        epochs, partitioner = passes // 4, Replicate()
    topology = {
        "single": Topology(groups=1),
        "never": Topology.independent(),
        "fedavg": Topology.fedavg(),
        "independent": Topology.independent(),
        "groups": Topology(groups=2),
        "branching": Topology(branch_at=BRANCH_AT[budget], trunk_workers=1),
    }[row]
    return Experiment(
        splits=splits,
        model=model_spec("cnn", input_shape=splits.schema.input_shape, num_outputs=splits.schema.num_classes),
        num_workers=workers,
        epochs=epochs,
        recipe=Recipe(batch_size=BATCH[row], precision="bf16-mixed", channels_last=True),
        topology=topology,
        diversity=Diversity(learning_rate_spread=0.0, dropout_spread=0.0),
        partitioner=partitioner,
        augmentation=Augmentation(flip=True),
        evaluate_every=10_000,
        seed=seed,
    )


def run_one(row: str, budget: int, seed: int) -> dict[str, float]:
    """Train one row with one seed and judge it on the test file."""
    assert _SPLITS is not None
    began = time.perf_counter()
    result = Engine(experiment_for(row, budget, seed, _SPLITS), LocalBackend(lanes=1)).run()
    wall_s = time.perf_counter() - began
    members, targets = result.ensemble.predict_labelled(_SPLITS.test)
    raw = result.ensemble.with_temperature(1.0).evaluate_predictions(members, targets)
    calibrated = result.ensemble.evaluate_predictions(members, targets)
    return {
        "accuracy": raw.accuracy,
        "nll": raw.nll,
        "ece": raw.ece,
        "calibrated_nll": calibrated.nll,
        "calibrated_ece": calibrated.ece,
        "mean_member_accuracy": raw.mean_member_accuracy,
        "disagreement": raw.diversity["disagreement"],
        "temperature": result.ensemble.temperature,
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


def table(results: dict[str, dict[str, float]], budget: int) -> str:
    """One budget as a Markdown table: mean ± standard deviation over the seeds."""
    heads = ("accuracy", "NLL", "ECE", "NLL after T", "ECE after T", "wall s")
    lines = [f"| {budget:,} worker-samples | seeds | {' | '.join(heads)} |", "|---" * 8 + "|"]
    for row, name in ROWS.items():
        runs = [value for key, value in results.items() if key.startswith(f"{row}/{budget}/")]
        if runs:
            cells = [_spread([run[figure] for run in runs], figure) for figure in FIGURES]
            lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], figure: str) -> str:
    return f"{mean(values):.0f}" if figure == "wall_s" else spread(values)


def main() -> int:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="cifar10:DIR")
    parser.add_argument("--out", type=Path, default=Path("headline.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, choices=BUDGETS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    if arguments.data is None:
        print("headline: give the folder of CIFAR-10 with --data cifar10:DIR; nothing was measured")
        return 0
    cells = [
        (row, budget, seed)
        for budget in arguments.budgets
        for seed in range(arguments.seeds)
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
    for budget in arguments.budgets:
        print("\n" + table(results, budget))
        pairs = [(row, other) for row in ("groups", "branching") for other in ("single", "independent")]
        for row, other in (*pairs, ("fedavg", "never")):
            print(f"{row} - {other} at {budget:,}: {paired(results, budget, row, other, PAIRED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
