"""Ray Train as a contender of `peers.py`: a `TorchTrainer` with a worker per core, members dealt out to them.

Each worker trains its members one after the other, each for all epochs, as the plain loop does but with one
torch thread, and reports their weights as a checkpoint. Nothing is averaged: Ray Train forms its process
group, which is not used. A worker for each member would have more of them than cores at work, since Ray Train
starts none before all have room. Ray's start and end, the workers' imports and the checkpoint count as
training, since a user waits for them. The members then predict in the calling process, like the plain loop's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig, get_context, report
from ray.train.torch import TorchTrainer
from torch import Tensor

from peer_runs import (
    Task,
    measured,
    own_usage,
    predictor_of_states,
    seeds_of,
    state_of_member,
    with_usage,
)


def train_share(config: dict[str, Any]) -> None:
    """In a worker: its share of the members, reported as one file."""
    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    seeds = config["seeds"][rank::size]
    states = {seed: state_of_member(config["path"], seed) for seed in seeds}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"states": states, "usage": own_usage()}, Path(folder) / f"{rank}.pt")
        report({}, checkpoint=Checkpoint.from_directory(folder))


def run(task: Task, seed: int) -> dict[str, float]:
    """Members on Ray Train."""
    usages: list[dict[str, float]] = []
    seeds = seeds_of(task, seed)
    cores = len(os.sched_getaffinity(0))

    def train() -> Callable[[], Tensor]:
        ray.init(num_cpus=cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        states: dict[int, dict[str, Tensor]] = {}
        with tempfile.TemporaryDirectory() as folder:
            trainer = TorchTrainer(
                train_share,
                train_loop_config={"path": task["path"], "seeds": seeds},
                scaling_config=ScalingConfig(num_workers=min(cores, len(seeds))),
                run_config=RunConfig(storage_path=folder),
            )
            with trainer.fit().checkpoint.as_directory() as reported:
                for path in sorted(Path(reported).glob("*.pt")):
                    share = torch.load(path)
                    states |= share["states"]
                    usages.append(share["usage"])
        ray.shutdown()
        return predictor_of_states(task, [states[each] for each in seeds])

    return with_usage(measured(task, train), usages)
