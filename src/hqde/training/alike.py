"""Which workers can be stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hqde.errors import PreconditionError
from hqde.training.worker import Worker


def check_alike(workers: Sequence[Worker]) -> None:
    """Refuse workers that cannot stand in one stack.

    Raises:
        PreconditionError: with what differs, and the cure.
    """
    cure = "train them with the backend 'local'"
    first = workers[0]
    common = replace(first.spec.recipe, learning_rate=1.0)
    for worker in workers[1:]:
        if worker.layout != first.layout or worker.spec.model != first.spec.model:
            raise PreconditionError(
                f"workers {first.spec.worker_id} and {worker.spec.worker_id} have different architectures "
                f"and cannot be stacked; {cure}"
            )
        if replace(worker.spec.recipe, learning_rate=1.0) != common:
            raise PreconditionError(
                f"workers {first.spec.worker_id} and {worker.spec.worker_id} differ in more of their recipe "
                f"than the learning rate and cannot be stacked; {cure}"
            )
    if common.temperature:
        raise PreconditionError(f"stacked workers take no Langevin noise (training.temperature); {cure}")
    if common.precision == "fp16-mixed":
        raise PreconditionError(
            f"stacked workers have no loss scaler, which fp16-mixed needs; {cure}, or bf16"
        )
    wide = {p.dtype for p in first.model.parameters()}
    if wide != {torch.float32}:
        raise PreconditionError(f"stacked workers are float32, this model's parameters {wide}; {cure}")
