"""Run directories made up from formulas: a clean classification run, a regression run, a large one."""

from __future__ import annotations

import base64
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteRun = Callable[..., Path]

CONFIG = """\
[data]
source = "digits"

[model]
name = "cnn"

[train]
epochs = 20
learning_rate = 0.003
"""


def history(
    *, num_workers: int, num_groups: int, num_rounds: int, branch_at: int, regression: bool, seed: int
) -> list[dict[str, Any]]:
    """Rounds whose losses fall, whose learning rate restarts, and whose groups part once."""
    chance = random.Random(seed)
    each = num_workers // num_groups
    parted = [list(range(g * each, (g + 1) * each)) for g in range(num_groups)]
    lines = []
    for index in range(1, num_rounds + 1):
        t = index / num_rounds
        groups = [list(range(num_workers))] if index < branch_at else parted
        group_of = {w: g for g, group in enumerate(groups) for w in group}
        decay = 0.08 + 2.0 * math.exp(-5 * t)
        rate = 0.003 * min(1.0, 8 * t) * 0.5 * (1 + math.cos(math.pi * t))
        rate += 0.002 * (1 - t) if index >= branch_at > 1 else 0.0
        workers = [
            {
                "worker": w,
                "group": group_of[w],
                "loss": decay * (1 + 0.1 * math.sin(w) + 0.04 * chance.random()),
                "accuracy": None if regression else 1 - 0.4 * decay * (1 + 0.1 * math.sin(w)) / 2.2,
                "lr": rate,
                "samples": 5000,
                "seconds": 1.0,
                "efficiency": 0.9,
                "status": "admitted",
            }
            for w in range(num_workers)
        ]
        members = [
            {
                "member": g,
                "nll": decay * (1.15 + 0.05 * math.sin(2 + g)),
                **(
                    {"rmse": 3 * decay * (1.1 + 0.02 * g)}
                    if regression
                    else {"accuracy": 0.97 - 0.3 * decay - 0.004 * g}
                ),
            }
            for g in range(len(groups))
        ]
        validation = {
            "loss": 0.9 * decay,
            "members": members,
            "accuracy": None if regression else 0.985 - 0.3 * decay,
            "disagreement": 0.04 if len(groups) > 1 else 0.0,
            "effective_members": 1 + 0.3 * (len(groups) - 1) * (t if len(groups) > 1 else 0),
            **({"rmse": 3 * decay} if regression else {}),
        }
        train = 1.0 + 0.2 * chance.random()
        lines.append(
            {
                "round": index,
                "epoch": index,
                "progress": t,
                "groups": groups,
                "scope": "group",
                "wall_s": train + 0.25,
                "phases": {"train": train, "aggregate": 0.05, "evaluate": 0.15, "checkpoint": 0.04},
                "workers": workers,
                "validation": validation,
                "sent_bytes": num_workers * 400_000,
                "dense_bytes": num_workers * 400_000,
            }
        )
    return lines


def resources(num_samples: int, num_rounds: int) -> list[dict[str, Any]]:
    """A sample for each second, spread over the rounds; what no machine has is null."""
    return [
        {
            "timestamp": 1_767_323_045.0 + second,  # 2026-01-02T03:04:05 UTC
            "monotonic_s": float(second),
            "cpu_percent": None if second == 0 else 60 + 20 * math.sin(second),
            "memory_percent": 40.0,
            "process_cpu_percent": 150.0,
            "process_rss_bytes": 500_000_000 + 1_000_000 * second,
            "disk_io_write_mb": 2.0 * second,
            "disk_write_bytes_per_s": 2.0 * 2**20,
            "network_sent_mb": 0.0,
            "network_sent_bytes_per_s": 0.0,
            "gpu_utilization": None,
            "processes": [{"pid": 1, "name": "python"}],
            "gpus": [],
            "round": 1 + second * num_rounds // num_samples,
            "phase": "train",
        }
        for second in range(num_samples)
    ]


def picture(number: int, *, size: int = 8, channels: int = 1) -> dict[str, Any]:
    """A blob whose place depends on ``number``."""
    cx, cy = number % size, (number // 2) % size
    pixels = bytes(
        int(255 * math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / size)) * (1 if c == 0 else 2) // 2
        for y in range(size)
        for x in range(size)
        for c in range(channels)
    )
    return {"shape": [size, size, channels], "pixels": base64.b64encode(pixels).decode()}


def classification_evaluation(num_members: int, classes: list[str]) -> dict[str, Any]:
    """Test figures of an over-confident ensemble that temperature mends."""
    bins = [(i + 0.5) / 15 for i in range(15)]
    count = [0, 0, 0, 2, 3, 5, 6, 8, 9, 12, 14, 18, 25, 40, 218]
    uncertain = [
        {
            "index": 17 * i,
            "target": i % len(classes),
            "predicted": (i + (i % 3 > 0)) % len(classes),
            "probability": 0.35 + 0.02 * i,
            "total": 1.6 - 0.05 * i,
            "aleatoric": 1.1 - 0.04 * i,
            "epistemic": 0.5 - 0.01 * i,
            "image": picture(i),
            "features": None,
        }
        for i in range(12)
    ]
    return {
        "task": "classification",
        "classes": classes,
        "reliability": {"confidence": bins, "accuracy": [max(0.0, b - 0.08) for b in bins], "count": count},
        "reliability_calibrated": {"confidence": bins, "accuracy": bins, "count": count},
        "disagreement_matrix": [
            [0.0 if i == j else 0.02 + 0.013 * ((i * j + i + j) % 5) for j in range(num_members)]
            for i in range(num_members)
        ],
        "members": [
            {
                "member": m,
                "accuracy": 0.966 + 0.002 * (m % 5),
                "nll": 0.12 - 0.004 * (m % 7),
                "brier": 0.05,
                "ece": 0.02,
            }
            for m in range(num_members)
        ],
        "ensemble": {"accuracy": 0.981, "nll": 0.071, "brier": 0.031, "ece": 0.021},
        "uncertain": uncertain,
    }


def regression_evaluation(num_members: int, num_points: int = 500) -> dict[str, Any]:
    """Predictions with Gaussian errors."""
    chance = random.Random(5)
    target = [chance.uniform(10, 50) for _ in range(num_points)]
    return {
        "task": "regression",
        "classes": [],
        "members": [
            {"member": m, "rmse": 2.4 + 0.1 * m, "nll": 2.2 + 0.05 * m, "crps": 1.3}
            for m in range(num_members)
        ],
        "ensemble": {"rmse": 2.2, "nll": 2.1, "crps": 1.2},
        "residuals": {"predicted": [t + chance.gauss(0.1, 2.1) for t in target], "target": target},
        "uncertain": [
            {"index": i, "target": 20.5, "predicted": 24.0, "probability": None,
             "total": 9.0, "aleatoric": 6.0, "epistemic": 3.0, "image": None,
             "features": [0.5 * j for j in range(13)]}
            for i in range(6)
        ],
    }  # fmt: skip


def metrics(
    evaluation: dict[str, Any], *, num_workers: int, num_groups: int, num_rounds: int
) -> dict[str, Any]:
    """``metrics.json`` to go with an evaluation."""
    return {
        **evaluation["ensemble"],
        "mean_member_accuracy": None if evaluation["task"] == "regression" else 0.97,
        "members": evaluation["members"],
        "diversity": {"disagreement": 0.04, "effective_members": 1.9},
        "train": {
            "wall_s": 1.4 * num_rounds,
            "worker_samples": 5000 * num_workers * num_rounds,
            "worker_samples_per_s": 12345.6,
            "peak_rss_bytes": 734_003_200,
        },
        "communication": {
            "rounds": num_rounds,
            "sent_bytes": 64_000_000,
            "dense_bytes": 64_000_000,
            "ratio": 1.0,
        },
        "faults": {"failures": 0, "restarts": 0, "rejected": 0},
        "backend": "local",
        "workers": num_workers,
        "groups": num_groups,
        "seed": 0,
        "data": "digits",
        "model": "cnn",
        "temperature": 1.23,
        "calibrated": {"accuracy": 0.981, "nll": 0.066, "brier": 0.03, "ece": 0.008},
    }


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run directory; every part of it can be changed or left out."""

    def write(
        name: str = "run",
        *,
        num_workers: int = 8,
        num_groups: int = 4,
        num_rounds: int = 20,
        branch_at: int = 12,
        regression: bool = False,
        finished: bool = True,
        classes: list[str] | None = None,
        events: list[dict[str, Any]] | None = None,
        num_samples: int = 0,
        change: Callable[[list[dict[str, Any]], dict[str, Any], dict[str, Any]], None] | None = None,
    ) -> Path:
        run = tmp_path / name
        run.mkdir()
        lines = history(
            num_workers=num_workers, num_groups=num_groups, num_rounds=num_rounds, branch_at=branch_at,
            regression=regression, seed=1,
        )  # fmt: skip
        names = classes or [str(digit) for digit in range(10)]
        evaluation = (
            regression_evaluation(num_groups) if regression else classification_evaluation(num_groups, names)
        )
        figures = metrics(evaluation, num_workers=num_workers, num_groups=num_groups, num_rounds=num_rounds)
        if change is not None:
            change(lines, figures, evaluation)
        (run / "config.toml").write_text(CONFIG)
        (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events or []))
        if num_samples:
            samples = resources(num_samples, num_rounds)
            (run / "resources.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        if finished:
            (run / "metrics.json").write_text(json.dumps(figures))
            (run / "evaluation.json").write_text(json.dumps(evaluation))
        return run

    return write
