"""A round, or a sample, as named numbers: what trackers plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hqde.monitoring.system_metrics import mean_of

RESOURCES = (
    "cpu_percent",
    "memory_percent",
    "memory_used_gb",
    "process_cpu_percent",
    "process_rss_bytes",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "network_sent_bytes_per_s",
    "network_recv_bytes_per_s",
    "gpu_memory_used_gb",
    "gpu_utilization",
    "load_average",
)


def round_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """What a round says in numbers; what is not known is left out.

    Args:
        record: a line of ``history.jsonl``.

    >>> workers = [{"worker": 0, "group": 0, "loss": 0.5, "accuracy": None, "lr": 0.1, "seconds": 1.0}]
    >>> record = {"workers": workers, "validation": None, "sent_bytes": 8, "wall_s": 2.0, "phases": {}}
    >>> list(round_scalars(record))
    ['train/loss', 'train/learning_rate', 'time/wall_s', 'communication/sent_bytes', 'worker/0/loss']
    """
    workers = record["workers"]
    found: dict[str, float | None] = {
        "train/loss": mean_of([worker["loss"] for worker in workers]),
        "train/accuracy": mean_of([worker["accuracy"] for worker in workers]),
        "train/learning_rate": mean_of([worker["lr"] for worker in workers]),
        "time/wall_s": record["wall_s"],
        "communication/sent_bytes": record["sent_bytes"],
    }
    found |= {f"time/{phase}_s": seconds for phase, seconds in record["phases"].items()}
    found |= {f"worker/{worker['worker']}/loss": worker["loss"] for worker in workers}
    validation = record["validation"]
    if validation is not None:
        names = ("loss", "accuracy", "rmse", "disagreement", "effective_members")
        found |= {f"validation/{name}": validation.get(name) for name in names}
        for score in validation["members"]:
            figures = {key: value for key, value in score.items() if key != "member"}
            found |= {f"member/{score['member']}/{key}": value for key, value in figures.items()}
    return {name: value for name, value in found.items() if value is not None}


def resource_scalars(sample: Mapping[str, Any]) -> dict[str, float]:
    """What a sample says in numbers; what is not known is left out.

    >>> resource_scalars({"cpu_percent": 12.5, "gpu_utilization": None})
    {'resources/cpu_percent': 12.5}
    >>> resource_scalars({"node": "b", "cpu_percent": 12.5})
    {'resources/b/cpu_percent': 12.5}
    """
    where = f"resources/{sample['node']}" if "node" in sample else "resources"
    return {f"{where}/{name}": value for name in RESOURCES if (value := sample.get(name)) is not None}
