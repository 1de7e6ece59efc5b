"""What compressing the traffic costs in accuracy: CIFAR-10, FedAvg and 2×2 groups.

    python benchmarks/compression_accuracy.py --data cifar10:DIR [--jobs 2] [--seeds 3] [--out results.json]
                                              [--settings fp32 packed-8 packed-4 packed-2 entropy-1]

`cnn` on 20 000 images, four workers with 5 000 each, SGD with rate 0.1 and momentum 0.9, rounds of 10 steps,
bfloat16. Either all are averaged (FedAvg, one member) or two and two (two members). Deltas go up and weights
come down encoded, with error feedback both ways. Bytes are those of the packets, headers and dense tensors
included; `ratio` is what the same rounds send as float32 over what they sent. Accuracy is of the ensemble on
the 5 000 test images.

Every run has one thread; `--jobs` go side by side. Results are kept in `--out` as they come, and a second
call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from grid import run_grid
from hqde.backends import LocalBackend
from hqde.compression import Compression, EntropyCodec, PackedCodec
from hqde.data import Augmentation, Iid, Splits, load_splits
from hqde.errors import HqdeError
from hqde.models import model_spec
from hqde.rounds import Engine, Experiment
from hqde.topology import Topology
from hqde.training import Recipe

WORKERS, IMAGES = 4, 20_000
TOPOLOGIES = {"fedavg": 1, "2x2": 2}


@dataclass(frozen=True)
class Setting:
    """A column: how everything travels, and what the issue asks of it."""

    compression: Compression
    least_ratio: float
    most_loss: float


SETTINGS: dict[str, Setting] = {
    "fp32": Setting(Compression(), 1.0, 0.0),
    "packed-8": Setting(Compression(PackedCodec(bits=8)), 3.8, 0.005),
    "packed-4": Setting(Compression(PackedCodec(bits=4)), 7.4, 0.005),
    "packed-2": Setting(Compression(PackedCodec(bits=2)), 13.0, 0.01),
    "entropy-1": Setting(Compression(EntropyCodec(bits=1.15)), 24.0, 0.01),
}

_SPLITS: Splits | None = None


def run(setting: str, topology: str, epochs: int, seed: int) -> dict[str, Any]:
    """One training."""
    torch.set_num_threads(1)
    assert _SPLITS is not None
    experiment = Experiment(
        splits=_SPLITS,
        model=model_spec("cnn", input_shape=(3, 32, 32), num_outputs=10),
        num_workers=WORKERS,
        epochs=epochs,
        recipe=Recipe(
            batch_size=64,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            precision="bf16-mixed",
        ),
        topology=Topology(groups=TOPOLOGIES[topology], every=10),
        partitioner=Iid(),
        augmentation=Augmentation(crop_padding=4, flip=True),
        compression=SETTINGS[setting].compression,
        evaluate_every=epochs,
        calibrate=False,
        seed=seed,
    )
    began = time.perf_counter()
    result = Engine(experiment, LocalBackend(lanes=1)).run()
    found = result.ensemble.evaluate(_SPLITS.test)
    totals = result.state.totals
    return {
        "accuracy": found.accuracy,
        "nll": found.nll,
        "ratio": totals.dense_bytes / totals.sent_bytes,
        "sent_bytes": totals.sent_bytes,
        "wall_s": time.perf_counter() - began,
    }


def load(source: str) -> None:
    """Read the data, once in each process."""
    global _SPLITS
    _SPLITS = load_splits(source, max_train=IMAGES, validation_fraction=0.02)


def table(results: dict[str, dict[str, Any]], settings: Sequence[str], epochs: int) -> str:
    """Accuracy, its difference from fp32, and bytes saved."""
    lines = [
        "| topology | setting | accuracy | points against fp32 | asked | times fewer bytes | asked | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for topology in TOPOLOGIES:
        plain = [r["accuracy"] for key, r in results.items() if key.startswith(f"fp32/{topology}/{epochs}/")]
        for setting in settings:
            found = [r for key, r in results.items() if key.startswith(f"{setting}/{topology}/{epochs}/")]
            if not found:
                continue
            accuracy = [r["accuracy"] for r in found]
            spread = f" ± {100 * stdev(accuracy):.2f}" if len(found) > 1 else ""
            lost = f"{100 * (mean(accuracy) - mean(plain)):+.2f}" if plain else "?"
            asked = SETTINGS[setting]
            lines.append(
                f"| {topology} | {setting} | {100 * mean(accuracy):.2f}{spread} | {lost} | "
                f"≥ {-100 * asked.most_loss:g} | {mean(r['ratio'] for r in found):.2f} | "
                f"≥ {asked.least_ratio:g} | {len(found)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="cifar10:DIR")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("compression_accuracy.json"))
    given = parser.parse_args()
    try:
        load(given.data)
    except HqdeError as error:
        sys.exit(f"{error}\ngive --data cifar10:DIR, a directory with train.parquet and test.parquet")
    cells = [
        (setting, topology, given.epochs, seed)
        for seed in range(given.seeds)
        for topology in TOPOLOGIES
        for setting in given.settings
    ]
    results = run_grid(run, cells, out=given.out, jobs=given.jobs, prepare=load, prepared_with=(given.data,))
    print("\n" + table(results, given.settings, given.epochs))


if __name__ == "__main__":
    main()
