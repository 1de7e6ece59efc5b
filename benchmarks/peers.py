"""HQDE beside others: the same members, rows, batches and epochs, in turn, and what each took.

    python benchmarks/peers.py --data cifar10:DIR [--task cnn|mlp] [--repeats 5] [--out peers.json]
    python benchmarks/peers.py --images 2000 --epochs 1 --repeats 1          # a short one

Every run is a process of its own (`peer_runs.py`), so that threads, caches and peak memory are its own.
Within a repeat the contenders take turns, and each is compared with the plain loop of the same repeat: a
machine that is slower at noon is so for all. Figures are medians over the repeats. Results are kept in
`--out` as they come, and a second call goes on where the first stopped.

The task `cnn` is 4 members of `cnn` on CIFAR-10 (20 000 images, batch 128), `mlp` 16 members of `mlp` on the
digits. Without `--data`, `cnn` is trained on random images of the same shape, so its accuracy is chance.
TorchEnsemble is used where it is installed, or by `--python PATH` of an environment that has it; Flower
likewise, by `--flower PATH` or `--python PATH`; the first HQDE (0.1.5) only by `--first-hqde PATH`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hqde.backends import usable_cores
from hqde.data import Splits, load_splits
from hqde.errors import HqdeError
from hqde.rounds.run_directory import write_text
from planner import random_rows

HERE = Path(__file__).resolve().parent
TASKS: dict[str, dict[str, Any]] = {
    "cnn": {"model": "cnn", "members": 4, "batch": 128, "rate": 3e-3, "epochs": 2, "images": 20_000},
    "mlp": {"model": "mlp", "members": 16, "batch": 128, "rate": 3e-3, "epochs": 20, "images": None},
}
NAMES = {
    "plain": "plain PyTorch loop",
    "processes": "the same, a process per core",
    "torchensemble": "TorchEnsemble, `n_jobs=1`",
    "torchensemble-2": "TorchEnsemble, `n_jobs=2`",
    "flower": "Flower, simulation",
    "ray-train": "Ray Train",
    "first-hqde": "the first HQDE (0.1.5)",
    "hqde": "HQDE, `local`",
    "hqde-bf16": "HQDE, `local`, bf16",
    "hqde-vectorised": "HQDE, `vectorised`",
    "hqde-ray-bf16": "HQDE, `ray`, bf16",
}


def write_task(task: dict[str, Any], splits: Splits, path: Path) -> None:
    """Rows and settings for the contenders, as plain tensors."""
    rows = {}
    for name in ("train", "validation", "test"):
        examples = getattr(splits, name)
        rows[name] = tuple(examples.fetch(torch.arange(len(examples))))
    torch.save(task | rows | {"hidden": [128, 128]}, path)


def run(contender: str, task: Path, seed: int, pythons: dict[str, str]) -> dict[str, float]:
    """One contender once, in a process of its own.

    Raises:
        RuntimeError: it failed; with the last lines of what it said.
    """
    script = "peer_first_hqde.py" if contender == "first-hqde" else "peer_runs.py"
    python = pythons.get(contender.split("-2")[0], sys.executable)
    done = subprocess.run(
        [python, str(HERE / script), contender, "--task", str(task), "--seed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{contender}: " + " | ".join(done.stderr.strip().splitlines()[-3:]))
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(results: dict[str, dict[str, float]], prefix: str) -> str:
    """Medians as a Markdown table; ratios are medians of the repeats' own."""
    heads = ("runs", "worker-samples/s", "× plain", "images/s predicted", "× plain", "accuracy", "peak MiB")
    lines = [f"| contender | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for contender, name in NAMES.items():
        keys = sorted(
            key for key in results if key.startswith(f"{prefix}/") and key.endswith(f"/{contender}")
        )
        if not keys:
            continue
        runs = [results[key] for key in keys]
        trained = [run["worker_samples"] / run["train_s"] for run in runs]
        predicted = [run["images"] / run["predict_s"] for run in runs]
        pairs = [
            (run, results.get(key.rpartition("/")[0] + "/plain")) for key, run in zip(keys, runs, strict=True)
        ]
        faster = [plain["train_s"] / run["train_s"] for run, plain in pairs if plain]
        sooner = [plain["predict_s"] / run["predict_s"] for run, plain in pairs if plain]
        cells = (
            f"{len(runs)}",
            f"{median(trained):,.0f}",
            f"{median(faster):.2f}" if faster else "–",
            f"{median(predicted):,.0f}",
            f"{median(sooner):.2f}" if sooner else "–",
            f"{median(run['accuracy'] for run in runs):.4f}",
            f"{median(run['peak_rss_bytes'] for run in runs) / 2**20:,.0f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments_of(argv: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="cifar10:DIR, for the task cnn; left out, random images")
    parser.add_argument("--task", choices=list(TASKS), default="cnn")
    parser.add_argument("--contenders", nargs="+", choices=list(NAMES))
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--members", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--python", help="an environment's python for TorchEnsemble and Flower")
    parser.add_argument("--flower", help="an environment's python for Flower, if another")
    parser.add_argument("--first-hqde", help="an environment's python that has hqde==0.1.5")
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    return parser.parse_args(argv)


def splits_for(task: dict[str, Any], data: str | None) -> Splits:
    """The rows of a task, a tenth of the training rows held out."""
    if task["model"] == "mlp":
        return load_splits("digits")
    if data is None:
        images = task["images"]
        return random_rows(images, (3, 32, 32), validation=round(images / 9), test=max(images // 5, 100))
    return load_splits(data, max_train=round(task["images"] / 0.9), validation_fraction=0.1)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then print the table."""
    given = arguments_of(argv)
    changes = {name: getattr(given, name) for name in ("images", "epochs", "members")}
    task = TASKS[given.task] | {name: value for name, value in changes.items() if value is not None}
    stand_in = given.task == "cnn" and given.data is None
    if stand_in:
        print("peers: no --data: random images of CIFAR-10's shape stand in, the accuracy is chance")
    contenders = given.contenders or [
        name
        for name in NAMES
        if (name != "first-hqde" or given.first_hqde)
        and (name != "flower" or given.flower or given.python or find_spec("flwr"))
        and not (given.task == "mlp" and name in ("hqde-bf16", "hqde-ray-bf16"))
        and not (given.task == "cnn" and name == "hqde-vectorised")
    ]
    pythons = {
        "torchensemble": given.python,
        "flower": given.flower or given.python,
        "first-hqde": given.first_hqde,
    }
    pythons = {name: path for name, path in pythons.items() if path}
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    kind = f"{given.task}-random" if stand_in else given.task
    prefix = f"{kind}/{task['members']}x{task['images'] or 'all'}x{task['epochs']}"
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.pt"
        try:
            write_task(task, splits_for(task, given.data), path)
        except HqdeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for repeat in range(given.repeats):
            for contender in contenders:
                key = f"{prefix}/{repeat}/{contender}"
                if key in results:
                    continue
                try:
                    results[key] = run(contender, path, repeat, pythons)
                except RuntimeError as error:
                    print(f"error: {error}", file=sys.stderr)
                    failed = True
                    continue
                write_text(given.out, json.dumps(results, indent=1) + "\n")
                rate = results[key]["worker_samples"] / results[key]["train_s"]
                print(f"{key}: {rate:,.0f} worker-samples/s, {results[key]['accuracy']:.4f}", flush=True)
    machine = (
        f"{platform.processor() or platform.machine()}, {usable_cores()} cores, torch {torch.__version__}"
    )
    print(f"\n{prefix}, {date.today()}, {machine}\n\n{table(results, prefix)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
