"""Bad workers on Fashion-MNIST, by a public protocol: published rows first, then HQDE's own setting.

    python benchmarks/robust_fmnist.py --data fashion-mnist:DIR [--jobs 2] [--seeds 3] [--out results.json]
                                       [--cases label_flip-2-0.1 …] [--settings fedavg multi_krum …]

The protocol is that of github.com/samuele-lolli/Aggregation-Federated-Learning-Analysis: 10 workers that all
take part, 40 rounds of one local epoch, batches of 32, SGD with rate 0.01 and momentum 0.9 started anew in
every round, a CNN of 80 202 parameters, random crop (4) and flip, each worker on 80 % of its share of the
60 000 images. Attackers hand in the weights they got plus N(0, 0.5²), or train with all labels but 2 and 9
turned into 2. Shares are drawn class by class, as Flower's DirichletPartitioner does, and an update counts
by its images. Figures are the mean and standard deviation over seeds of the test accuracy after round 40;
published ones are of 15 seeds. Differences: training runs in bfloat16 (`--precision fp32` for none of it),
and inputs are standardised by the training images instead of by MNIST's constants.

Every run has one thread; `--jobs` go side by side. Results are kept in `--out` as they come, and a second
call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grid import run_grid
from hqde.aggregation import (
    AggregationPolicy,
    FedAvg,
    GaussianNoise,
    LearntShares,
    Mean,
    Momentum,
    NormBound,
    Rule,
    ServerOptimizer,
    make_rule,
)
from hqde.backends import LocalBackend, Outcome
from hqde.data import Augmentation, Iid, Splits, load_splits
from hqde.drills import LabelFlip, run_trial
from hqde.errors import HqdeError
from hqde.models import model_spec
from hqde.rounds import Experiment
from hqde.topology import Topology
from hqde.training import Diversity, Order, Precision, Recipe

WORKERS, ROUNDS, TRAIN_IMAGES = 10, 40, 48_000
FLIP = LabelFlip(tuple((label, 2) for label in (0, 1, 3, 4, 5, 6, 7, 8)))
NO_SPREAD = Diversity(learning_rate_spread=0.0, dropout_spread=0.0)


@dataclass(frozen=True)
class Setting:
    """What a column aggregates with: a rule for f bad workers, a server optimizer, and screening."""

    rule: Callable[[int], Rule]
    server: ServerOptimizer = FedAvg()
    policy: AggregationPolicy = AggregationPolicy()
    calibrate: bool = False  # by temperature and matrix scaling, on the validation rows


def caf(num_byzantine: int) -> Rule:
    """The rule of four settings."""
    return make_rule("caf", num_byzantine=num_byzantine)


SLOW = Momentum(learning_rate=0.2, momentum=0.8)  # a mean over the last rounds' deltas
BOUND = AggregationPolicy(norm_bound=NormBound())
LEARNT = AggregationPolicy(norm_bound=NormBound(), learnt_shares=LearntShares())

# Case: published FedAvg, FedMedian, TrimmedAvg and MultiKrum, each mean and standard deviation of 15 seeds.
PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "gaussian-2-iid": ((0.663, 0.025), (0.867, 0.004), (0.865, 0.003), (0.869, 0.002)),
    "gaussian-2-0.5": ((0.608, 0.155), (0.842, 0.013), (0.851, 0.010), (0.856, 0.010)),
    "gaussian-2-0.1": ((0.520, 0.108), (0.695, 0.061), (0.762, 0.044), (0.788, 0.046)),
    "label_flip-2-iid": ((0.780, 0.034), (0.835, 0.007), (0.834, 0.008), (0.868, 0.003)),
    "label_flip-3-iid": ((0.652, 0.179), (0.793, 0.012), (0.793, 0.010), (0.868, 0.003)),
    "label_flip-1-0.1": ((0.786, 0.037), (0.687, 0.044), (0.747, 0.053), (0.769, 0.048)),
    "label_flip-2-0.1": ((0.754, 0.058), (0.634, 0.065), (0.666, 0.041), (0.664, 0.094)),
    "label_flip-3-0.1": ((0.691, 0.076), (0.550, 0.096), (0.558, 0.087), (0.437, 0.168)),
}
COLUMN = {"fedavg": 0, "multi_krum": 3}
SETTINGS: dict[str, Setting] = {
    "fedavg": Setting(lambda _: Mean()),
    "multi_krum": Setting(lambda f: make_rule("multi_krum", num_byzantine=f)),
    "fedavg_m": Setting(lambda _: Mean(), SLOW),
    "bound_m": Setting(lambda _: Mean(), SLOW, BOUND),
    "nnm_gm": Setting(lambda f: make_rule("geometric_median", num_byzantine=f, mixing=["nnm"])),
    "nnm_gm_m": Setting(lambda f: make_rule("geometric_median", num_byzantine=f, mixing=["nnm"]), SLOW),
    "gm_m": Setting(lambda f: make_rule("geometric_median", num_byzantine=f), SLOW),
    "caf_m": Setting(caf, SLOW),
    "caf_fast": Setting(caf, Momentum(0.5, 0.8)),
    "bound_caf": Setting(caf, Momentum(0.5, 0.8), BOUND),
    "calibrated": Setting(caf, Momentum(0.5, 0.8), BOUND, calibrate=True),
    "learnt": Setting(lambda _: Mean(), Momentum(0.5, 0.8), LEARNT),
}

_SPLITS: Splits | None = None
_PRECISION: Precision = "bf16-mixed"


class PaperCNN(nn.Module):
    """conv16(5), pool, conv32(5), pool, fc128, fc10: 80 202 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, 1, 28, 28)."""
        logits: Tensor = self.body(inputs)
        return logits


@dataclass(frozen=True)
class ByClass:
    """Each class is dealt out in proportions drawn from Dir(alpha), to those who have not yet their fill.

    The scheme of Flower's DirichletPartitioner as it is by default (`self_balancing`, at least 10 rows for
    everyone): whoever has more than an equal share already gets nothing of the classes that come after.
    """

    alpha: float

    def assign(
        self, targets: Tensor, num_workers: int, *, epoch: int, seed: int, shares: Any = None
    ) -> list[Tensor]:
        """Row numbers for each worker, the same in every epoch."""
        del epoch, shares
        rng = np.random.default_rng(seed)
        labels = targets.numpy()
        for _ in range(10):
            mine: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
            sizes = np.zeros(num_workers, dtype=int)
            for label in np.unique(labels):
                rows = rng.permutation(np.flatnonzero(labels == label))
                wanted = rng.dirichlet([self.alpha] * num_workers)
                wanted[sizes > len(labels) / num_workers] = 0.0
                cuts = (np.cumsum(wanted / wanted.sum()) * len(rows)).astype(int)[:-1]
                for worker, part in enumerate(np.split(rows, cuts)):
                    mine[worker].append(part)
                    sizes[worker] += len(part)
            if sizes.min() >= 10:
                return [torch.from_numpy(rng.permutation(np.concatenate(parts))) for parts in mine]
        raise HqdeError(f"no division of {len(labels)} rows gives all {num_workers} workers 10 of them")


class ForgetfulBackend(LocalBackend):
    """Workers begin every round with a new optimizer, as stateless clients do."""

    def train(self, orders: Sequence[Order], **options: Any) -> Iterator[Outcome]:
        """Pass on."""
        yield from super().train([replace(order, fresh_optimizer=True) for order in orders], **options)


def experiment_for(setting: str, case: str, seed: int, splits: Splits) -> Experiment:
    """A cell of the table, but for its rule."""
    alpha = case.rsplit("-", 1)[1]
    return Experiment(
        splits=splits,
        model=model_spec("robust_fmnist:PaperCNN", input_shape=(1, 28, 28), num_outputs=10),
        num_workers=WORKERS,
        epochs=ROUNDS,
        recipe=Recipe(
            batch_size=32,
            optimizer="sgd",
            learning_rate=0.01,
            weight_decay=0.0,
            momentum=0.9,
            nesterov=False,
            schedule="constant",
            warmup=0.0,
            clip_norm=0.0,
            precision=_PRECISION,
        ),
        topology=Topology(groups=1),
        diversity=NO_SPREAD,
        dropout_rate=None,
        partitioner=Iid() if alpha == "iid" else ByClass(float(alpha)),
        augmentation=Augmentation(crop_padding=4, flip=True),
        server=SETTINGS[setting].server,
        policy=SETTINGS[setting].policy,
        evaluate_every=ROUNDS,
        calibrate=SETTINGS[setting].calibrate,
        matrix_scaling=SETTINGS[setting].calibrate,
        seed=seed,
    )


def run(setting: str, case: str, seed: int) -> dict[str, Any]:
    """One training."""
    torch.set_num_threads(1)
    assert _SPLITS is not None
    name, faults, _ = case.rsplit("-", 2)
    trial = run_trial(
        experiment_for(setting, case, seed, _SPLITS),
        ForgetfulBackend(lanes=1),
        rule=SETTINGS[setting].rule(int(faults)),
        attack=GaussianNoise(0.5) if name == "gaussian" else FLIP,
        num_byzantine=int(faults),
    )
    return {
        "accuracy": trial.accuracy,
        "recall": trial.recall,
        "precision": trial.precision,
        "broke": trial.broke,
    }


def load(source: str, precision: Precision) -> None:
    """Read the data, once in each process."""
    global _SPLITS, _PRECISION
    _PRECISION = precision
    _SPLITS = load_splits(source, max_train=TRAIN_IMAGES, validation_fraction=0.02)


def table(results: dict[str, dict[str, Any]], settings: Sequence[str], cases: Sequence[str]) -> str:
    """Accuracy by case and setting, beside what was published."""
    head = (
        "| case | published FedAvg | published Multi-Krum | best published | " + " | ".join(settings) + " |"
    )
    lines = [head, "|---|---|---|---|" + "---|" * len(settings)]
    for case in cases:
        known = PUBLISHED[case]
        cells = [f"{known[0][0]:.3f}±{known[0][1]:.3f}", f"{known[3][0]:.3f}±{known[3][1]:.3f}"]
        cells.append(f"{max(value for value, _ in known):.3f}")
        for setting in settings:
            found = [
                r["accuracy"] or 0.1 for key, r in results.items() if key.startswith(f"{setting}/{case}/")
            ]
            spread = f"±{stdev(found):.3f}" if len(found) > 1 else ""
            cells.append(f"{mean(found):.3f}{spread} ({len(found)})" if found else "")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="fashion-mnist:DIR")
    parser.add_argument("--cases", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16-mixed"), default=_PRECISION)
    parser.add_argument("--out", type=Path, default=Path("robust_fmnist.json"))
    given = parser.parse_args()
    try:
        load(given.data, given.precision)
    except HqdeError as error:
        sys.exit(f"{error}\nget Debian's dataset-fashion-mnist, and give --data fashion-mnist:DIR")
    cells = [
        (setting, case, seed)
        for seed in range(given.seeds)
        for case in given.cases
        for setting in given.settings
    ]
    loaded_with = (given.data, given.precision)
    results = run_grid(run, cells, out=given.out, jobs=given.jobs, prepare=load, prepared_with=loaded_with)
    print("\n" + table(results, given.settings, given.cases))


if __name__ == "__main__":
    main()
