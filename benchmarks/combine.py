"""What combining and selecting members buys: CIFAR-10 and Fashion-MNIST, pools of mixed and of equal strength.

    python benchmarks/combine.py --data cifar10:DIR fashion-mnist:DIR [--out DIR] [--seed 0]

Members of a mixed pool differ in width, training rows and epochs; members of an equal pool in their random
streams alone. Their predictions on rows that no member was trained on (the validation split and the test
file) are kept in `--out`, one `.npz` per pool, so that a second call only judges. Five times these rows are
divided at random: combiners are fitted, and members selected, on `--fit-rows` of them and judged on the rest.
One thread; nothing here is slow but the training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hqde.backends import LocalBackend
from hqde.data import Augmentation, Splits, SubsetExamples, load_splits
from hqde.errors import HqdeError
from hqde.models import model_spec
from hqde.rounds import Engine, Experiment
from hqde.seeding import generator
from hqde.topology import Topology
from hqde.training import Diversity, Recipe

TRAIN_IMAGES = 25_000  # a fifth of them held out


@dataclass(frozen=True)
class Family:
    """Members that are trained alike."""

    members: int
    channels: tuple[int, ...]
    rows: int
    epochs: int


POOLS: dict[str, tuple[Family, ...]] = {
    "mixed": (
        Family(4, (32, 64, 128), 10_000, 7),
        Family(4, (16, 32, 64), 10_000, 5),
        Family(4, (16, 32), 3_000, 4),
        Family(4, (8, 16), 10_000, 2),
    ),
    "equal": (Family(8, (16, 32, 64), 10_000, 6),),
}


def train(splits: Splits, pool: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (m, n, c) of a pool's members on all held-out rows, and the targets (n,)."""
    probs, targets = [], torch.cat([splits.validation.targets, splits.test.targets])
    for number, family in enumerate(POOLS[pool]):
        began = time.perf_counter()
        chosen = torch.randperm(len(splits.train), generator=generator(seed, "rows", number))[: family.rows]
        experiment = Experiment(
            splits=replace(splits, train=SubsetExamples(splits.train, chosen)),
            model=model_spec(
                "cnn",
                input_shape=splits.schema.input_shape,
                num_outputs=splits.schema.num_classes,
                options={"channels": list(family.channels)},
            ),
            num_workers=family.members,
            epochs=family.epochs,
            recipe=Recipe(precision="bf16-mixed"),
            topology=Topology.independent(),
            diversity=Diversity(bootstrap=pool == "mixed"),
            augmentation=Augmentation(flip=True),
            evaluate_every=10_000,
            calibrate=False,
            seed=seed + number,
        )
        ensemble = Engine(experiment, LocalBackend()).run().ensemble
        found = [ensemble.predict_members(rows) for rows in (splits.validation, splits.test)]
        probs.append(torch.cat(found, dim=1))
        right = [float((p.argmax(1) == targets).double().mean()) for p in probs[-1]]
        spent = time.perf_counter() - began
        print(f"  {pool} {family}: accuracy {[f'{r:.3f}' for r in right]}, {spent:.0f} s", flush=True)
    return torch.cat(probs), targets


def predictions(source: str, pool: str, seed: int, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """`train`, or what an earlier call kept of it."""
    file = folder / f"{source.partition(':')[0]}-{pool}-{seed}.npz"
    if not file.exists():
        splits = load_splits(source, max_train=TRAIN_IMAGES, validation_fraction=0.2)
        probs, targets = train(splits, pool, seed)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, probs=probs.numpy(), targets=targets.numpy())
    kept = np.load(file)
    return torch.from_numpy(kept["probs"]), torch.from_numpy(kept["targets"])


def main() -> None:
    """Train what is missing, then judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="cifar10:DIR fashion-mnist:DIR")
    parser.add_argument("--out", type=Path, default=Path("combine"), help="where predictions are kept")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for source in given.data:
            for pool in POOLS:
                probs, targets = predictions(source, pool, given.seed, given.out)
                print(source, pool, tuple(probs.shape))
    except HqdeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
