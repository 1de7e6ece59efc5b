"""What a step takes of the memory, and how it shows that there is not enough."""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.models import call_model
from hqde.seeding import seeded
from hqde.training.worker import Worker

# What PyTorch says where it raises a plain RuntimeError: its allocator on CPUs, CUDA and the libraries on it.
SHORT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is not enough memory, of the machine or of a GPU.

    Example:
        >>> try:
        ...     torch.empty(10**15)
        ... except RuntimeError as error:
        ...     is_out_of_memory(error)
        True
        >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHORT_OF_MEMORY)


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
