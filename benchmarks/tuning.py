"""Who finds good settings: TPE, chance, and walkers that tunnel, with the same number of trials.

    python benchmarks/tuning.py [--seeds 20] [--digits-seeds 5] [--trials 40]

Three functions whose least value is known, and a network on the digits, whose rate, batch size, weight
decay and dropout are searched with trials as groups of one run. A cell is the best value found, mean and
median over the seeds; the last column counts in how many seeds each was the best of the three.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import optuna
import torch

from hqde.config import build_config, load_data, resolve
from hqde.errors import HqdeError
from hqde.tuning import SAMPLERS, Dimension, Study, parse_space
from hqde.tuning.samplers import INDEX, distribution_of, make_sampler

DIGITS = {
    "data": {"max_train": 400, "validation_fraction": 0.3},
    "model": {"name": "mlp", "options": {"hidden": [32]}},
    "run": {"workers": 1, "epochs": 3},
}
SEARCH = [
    "training.learning_rate=log:1e-5:1.0",
    "training.batch_size=log:4:128",
    "training.weight_decay=log:1e-5:1.0",
    "model.dropout_rate=0.0:0.7",
]


def branin(x: list[float]) -> float:
    """Three equal valleys in two dimensions; the least value is 0.397887."""
    a, b = 15 * x[0] - 5, 15 * x[1]
    bent = b - 5.1 / (4 * math.pi**2) * a * a + 5 / math.pi * a - 6
    return bent * bent + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10


def rastrigin(x: list[float]) -> float:
    """A bowl full of small ones, in four dimensions; the least value is 0."""
    places = [(value - 0.6) * 5.12 for value in x]
    return sum(p * p - 10 * math.cos(2 * math.pi * p) + 10 for p in places)


def rosenbrock(x: list[float]) -> float:
    """A bent and narrow valley in three dimensions; the least value is 0."""
    p = [4 * value - 2 for value in x]
    return sum(100 * (p[i + 1] - p[i] ** 2) ** 2 + (1 - p[i]) ** 2 for i in range(2))


FUNCTIONS: dict[str, tuple[Callable[[list[float]], float], int]] = {
    "Branin, 2 dimensions": (branin, 2),
    "Rosenbrock, 3 dimensions": (rosenbrock, 3),
    "Rastrigin, 4 dimensions": (rastrigin, 4),
}


def best_of_function(
    function: Callable[[list[float]], float], dimensions: int, sampler: str, trials: int, seed: int
) -> float:
    """The least value that one sampler finds, one trial after the other."""
    space = [Dimension(f"x.{i}", 0.0, 1.0) for i in range(dimensions)]
    distributions = {d.name: distribution_of(d) for d in space}
    study = optuna.create_study(direction="minimize")
    for index in range(trials):
        study.sampler = make_sampler(sampler, space, index=index, budget=trials, seed=seed)
        trial = study.ask(distributions)
        trial.set_user_attr(INDEX, index)
        study.tell(trial, function([trial.params[d.name] for d in space]))
    return float(study.best_value)


def best_on_digits(sampler: str, trials: int, seed: int) -> float:
    """The least validation loss that one sampler finds, four trials at a time."""
    config = build_config(DIGITS)
    splits = load_data(config)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(
            Path(folder) / "study",
            resolve(config, splits),
            parse_space(SEARCH),
            num_trials=trials,
            sampler=sampler,
            seed=seed,
        )
        best = study.run(splits).best.loss
    assert best is not None
    return best


def row(name: str, found: dict[str, list[float]]) -> str:
    """A line of the table."""
    cells = [f"{mean(values):.4g}, {median(values):.4g}" for values in found.values()]
    return f"| {name} | {len(found['tpe'])} | {' | '.join(cells)} | {wins(found)} |"


def wins(found: dict[str, list[float]]) -> str:
    """In how many seeds each sampler was the best."""
    winners = [min(found, key=lambda name: found[name][seed]) for seed in range(len(found["tpe"]))]
    return ", ".join(str(winners.count(name)) for name in found)


def main() -> int:
    """Search everything with everyone, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--digits-seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{arguments.trials} trials; mean, median of the best value\n")
    print(f"| | seeds | {' | '.join(SAMPLERS)} | best in seeds |\n{'|---' * 6}|")
    try:
        for name, (function, dimensions) in FUNCTIONS.items():
            found = {
                sampler: [
                    best_of_function(function, dimensions, sampler, arguments.trials, seed)
                    for seed in range(arguments.seeds)
                ]
                for sampler in SAMPLERS
            }
            print(row(name, found), flush=True)
        found = {
            sampler: [
                best_on_digits(sampler, arguments.trials, seed) for seed in range(arguments.digits_seeds)
            ]
            for sampler in SAMPLERS
        }
        print(row("digits, validation NLL", found), flush=True)
    except HqdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
