"""What a step takes of the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.models import call_model
from hqde.seeding import seeded
from hqde.training.worker import Worker


def step_bytes(worker: Worker) -> int:
    """Bytes that a worker's model keeps of a batch between forward and backward pass, measured on real rows.

    Args:
        worker: between two rounds; its model stays as it is.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = torch.arange(min(worker.spec.recipe.batch_size, len(worker.examples)))
    before = worker.layout.read(worker.model)
    with seeded(worker.spec.seed, "worker", worker.spec.worker_id, "memory", device=worker.device):
        inputs, _ = worker.batch(rows, None)
        worker.model.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), worker.autocast():
            outputs = call_model(worker.model, inputs)
        del outputs
    worker.layout.write(before, worker.model)
    return sum(kept.values())
