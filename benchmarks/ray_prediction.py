"""Images per second of an ensemble of four `cnn` through Ray, beside the first HQDE's on the same images.

    python benchmarks/ray_prediction.py [--data cifar10:DIR] [--first-hqde PYTHON]

Two actors, a torch thread each, predict the test images through `RayBackend.predict_members`: with the
members as trained, and made ready by `Ensemble.for_inference`, in turns. With `--first-hqde` (the python of
an environment that has hqde==0.1.5) that one predicts the same images with the same network, twice before and
twice after: a machine that is slow today is so for both. Without, its speed of another day stands beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hqde.backends import LocalBackend, RaySettings
from hqde.data import Splits, TensorExamples, make_splits
from hqde.ensemble import Ensemble
from hqde.errors import HqdeError
from hqde.rounds import Engine
from hqde.topology import Topology
from ray_overhead import WORKERS, experiment_of, read_data

FIRST_HQDE_IMAGES_PER_S = 371.0  # its predict() of the same on such a machine, on another day
TRAINING_IMAGES = 2_000  # the speed of prediction does not depend on how well members were trained


def predict(splits: Splits, repeats: int) -> list[dict[str, Any]]:
    """Images per second of four members through two workers, as they are and made ready for inference."""
    from hqde.backends.on_ray import RayBackend

    few = make_splits(
        "few",
        TensorExamples(*splits.train.fetch(torch.arange(1024))),
        test=splits.test,
        task="classification",
    )
    ensemble = Engine(experiment_of(few, 4, 1, Topology.independent()), LocalBackend()).run().ensemble
    variants: dict[str, Ensemble] = {
        "as trained": ensemble,
        "fp32, folded": ensemble.for_inference("fp32"),
        "bf16, folded": ensemble.for_inference("bf16"),
        "int8": ensemble.for_inference("int8", few.train),
    }
    exact = ensemble.predict_members(splits.test)
    backend = RayBackend(RaySettings(), threads=1)
    backend.start(experiment_of(few, WORKERS, 1, Topology(groups=1)).worker_specs(), few.train)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    made = {}
    for _ in range(repeats + 1):
        for name, variant in variants.items():
            began = time.perf_counter()
            made[name] = backend.predict_members(variant, splits.test)
            seconds[name].append(time.perf_counter() - began)
    backend.close()
    return [
        {
            "members": name,
            "images": len(splits.test),
            "first_s": seconds[name][0],
            "seconds": seconds[name][1:],
            "same_bits": torch.equal(made[name], variants[name].predict_members(splits.test)),
            "largest_difference": float((made[name] - exact).abs().max()),
            "same_class": float((made[name].argmax(-1) == exact.argmax(-1)).float().mean()),
        }
        for name in variants
    ]


def first_hqde_speed(python: str, splits: Splits) -> float:
    """Images per second of the first HQDE's predict(), four members trained on a few images."""
    few, test = (
        tuple(splits.train.fetch(torch.arange(512))),
        tuple(splits.test.fetch(torch.arange(len(splits.test)))),
    )
    task = {"model": "cnn", "members": 4, "batch": 128, "epochs": 1, "train": few, "test": test}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.pt"
        torch.save(task, path)
        script = Path(__file__).with_name("peer_first_hqde.py")
        command = [python, str(script), "first-hqde", "--task", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return float(found["images"] / found["predict_s"])


def prediction_table(found: list[dict[str, Any]], firsts: list[float]) -> str:
    """The speeds as Markdown."""
    first = median(firsts) if firsts else FIRST_HQDE_IMAGES_PER_S
    when = f", median of {sorted(map(round, firsts))} before and after" if firsts else " on another day"
    lines = [
        f"Prediction, 4 members of `cnn`, {found[0]['images']:,} images, in turns; the first HQDE's speed is "
        f"{first:.0f} images/s{when}",
        "",
        "| members | images/s, median | least to most | first call | / first HQDE | bits of one process "
        "| largest difference | same class |",
        "|---" * 8 + "|",
    ]
    for entry in found:
        speeds = [entry["images"] / s for s in entry["seconds"]]
        lines.append(
            f"| {entry['members']} | {median(speeds):,.0f} | {min(speeds):,.0f} to {max(speeds):,.0f} | "
            f"{entry['images'] / entry['first_s']:,.0f} | {median(speeds) / first:.1f} | "
            f"{'yes' if entry['same_bits'] else 'NO'} | {entry['largest_difference']:.2g} | "
            f"{entry['same_class']:.4f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="cifar10:DIR; left out, random images of the same shape")
    parser.add_argument("--first-hqde", help="an environment's python that has hqde==0.1.5")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first, times = arguments.first_hqde, 2 if arguments.first_hqde else 0
    try:
        splits = read_data(arguments.data, TRAINING_IMAGES, quick=False)
        firsts = [first_hqde_speed(first, splits) for _ in range(times)]
        found = predict(splits, arguments.repeats)
        firsts += [first_hqde_speed(first, splits) for _ in range(times)]
    except HqdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: the first HQDE: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 2
    print(prediction_table(found, firsts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
