"""The first HQDE (0.1.5, from PyPI, in an environment of its own) as a contender of `peers.py`.

It deals each batch out to its workers and averages them after every epoch, so the same number of
worker-samples takes `members` times the epochs, and a worker's batch is a share of a larger one. The network
is the same; its optimizer and schedule are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

import ray
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hqde import HQDESystem


class CNN(nn.Module):
    """`hqde.models.CNN` of today, in plain PyTorch."""

    def __init__(self, num_classes: int = 10, dropout_rate: float = 0.1) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for width, wider in ((3, 32), (32, 64), (64, 128)):
            blocks += [
                nn.Conv2d(width, wider, 3, padding=1),
                nn.BatchNorm2d(wider),
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout_rate), nn.Linear(2048, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.head(self.body(images))
        return out


def main() -> int:
    """Train once, and say what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender")
    parser.add_argument("--task", required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    task = torch.load(given.task)
    if task["model"] != "cnn":
        raise SystemExit("the first HQDE is compared on the task cnn only")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    torch.manual_seed(given.seed)
    ray.init(num_cpus=task["members"], logging_level="ERROR", log_to_driver=False)
    system = HQDESystem(CNN, {"num_classes": 10}, num_workers=task["members"])
    system.initialize_ensemble()
    ray.get(
        [worker.get_efficiency_score.remote() for worker in system.ensemble_manager.workers]
    )  # they are up

    began = time.perf_counter()
    images = task["train"][0].float()
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    rows = TensorDataset((images - mean) / std, task["train"][1])
    epochs = task["members"] * task["epochs"]
    loader = DataLoader(rows, batch_size=task["batch"] * task["members"], shuffle=True)
    system.train(loader, num_epochs=epochs)
    train_s = time.perf_counter() - began

    test, labels = (task["test"][0].float() - mean) / std, task["test"][1]
    judged = DataLoader(TensorDataset(test, labels), batch_size=128)
    began = time.perf_counter()
    predicted = system.predict(judged)
    predict_s = time.perf_counter() - began
    found = {
        "train_s": train_s,
        "worker_samples": epochs * len(rows),
        "predict_s": predict_s,
        "images": len(labels),
        "accuracy": float((predicted.argmax(1) == labels).float().mean()),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    system.cleanup()
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
