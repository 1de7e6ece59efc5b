"""What privacy costs: accuracy on the digits against the ε that is spent.

    python benchmarks/privacy.py [--seeds 3] [--workers 100] [--rounds 30]

One group of many workers with a few rows each, a softmax regression, every worker in every round. The noise
has a key, so that the table repeats; a run that is to protect somebody has none.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean, stdev

import torch

from hqde.aggregation import Momentum
from hqde.backends import LocalBackend
from hqde.data import Iid, load_splits
from hqde.errors import HqdeError
from hqde.models import model_spec
from hqde.rounds import Engine, Experiment, Privacy
from hqde.topology import Topology
from hqde.training import Diversity, Recipe

CLIP_NORM, DELTA = 0.5, 1e-3
NOISE_MULTIPLIERS = (None, 0.5, 1.0, 2.0, 4.0, 8.0)


def accuracy_of(noise: float | None, workers: int, rounds: int, seed: int) -> tuple[float, float | None]:
    """Test accuracy, and ε; without privacy where there is no noise."""
    splits = load_splits("digits")
    privacy = Privacy() if noise is None else Privacy(CLIP_NORM, noise, DELTA, key=seed)
    experiment = Experiment(
        splits=splits,
        model=model_spec(
            "mlp",
            input_shape=splits.schema.input_shape,
            num_outputs=splits.schema.num_classes,
            norm="group",
            options={"hidden": []},
        ),
        num_workers=workers,
        epochs=rounds,
        recipe=Recipe(
            optimizer="sgd", learning_rate=0.05, schedule="constant", warmup=0.0, batch_size=16, clip_norm=0.0
        ),
        topology=Topology(groups=1),
        diversity=Diversity(learning_rate_spread=0.0, dropout_spread=0.0),
        partitioner=Iid(),
        server=Momentum(learning_rate=1.0, momentum=0.5),
        privacy=privacy,
        evaluate_every=10_000,
        seed=seed,
    )
    result = Engine(experiment, LocalBackend()).run()
    return result.ensemble.evaluate(splits.test).accuracy, privacy.epsilon(rounds)


def main() -> int:
    """Train with every amount of noise, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.workers} workers, {arguments.rounds} rounds, δ = {DELTA:g}, clipped to {CLIP_NORM:g}")
    print("| noise multiplier | ε | accuracy |\n|---|---|---|")
    try:
        for noise in NOISE_MULTIPLIERS:
            found = [
                accuracy_of(noise, arguments.workers, arguments.rounds, s) for s in range(arguments.seeds)
            ]
            values, epsilon = [accuracy for accuracy, _ in found], found[0][1]
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            told = ("none", "∞") if noise is None or epsilon is None else (f"{noise:g}", f"{epsilon:.2f}")
            print(f"| {told[0]} | {told[1]} | {mean(values):.4f}{spread} |", flush=True)
    except HqdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
