"""What a worker is told before its first round, and what it carries from one to the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hqde.data import Augmentation, Normalization, Schema, TargetScale
from hqde.models import ModelSpec
from hqde.training.recipe import Recipe
from hqde.training.schedule import Schedule


@dataclass(frozen=True)
class WorkerSpec:
    """All a worker needs to know before its first round; the same wherever it runs.

    Attributes:
        worker_id: 0, 1, …
        model: architecture.
        dropout_rate: this worker's; ``None`` leaves the architecture's default.
        recipe: this worker's, with its group's overrides and its own learning rate applied.
        schedule: learning rate over the run.
        schema, normalization, target_scale: what the data look like and how they enter the model.
        augmentation: of images, while training.
        seed: the run's seed; every stream of the worker is derived from it and ``worker_id``.
        device: where to train, e.g. ``"cpu"`` or ``"cuda:0"``.
    """

    worker_id: int
    model: ModelSpec
    dropout_rate: float | None
    recipe: Recipe
    schedule: Schedule
    schema: Schema
    normalization: Normalization
    target_scale: TargetScale
    augmentation: Augmentation
    seed: int
    device: str = "cpu"


@dataclass(frozen=True)
class WorkerState:
    """What a worker carries from round to round besides the committed weights.

    Attributes:
        tensors: optimizer state, loss scaler, the worker's own buffers, what error feedback owes, and the
            worker's own weights where it has some.
        efficiency: its efficiency score.
    """

    tensors: dict[str, Tensor]
    efficiency: float
