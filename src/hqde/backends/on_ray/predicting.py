"""Members predict on the workers' actors, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from torch import Tensor

from hqde.backends.on_ray.shipping import as_tensor, pack
from hqde.ensemble import BATCH_SIZE, Ensemble


def predict_members(ensemble: Ensemble, examples: Any, num_rows: int, actors: Sequence[Any]) -> Tensor:
    """What ``Ensemble.predict_members`` returns, to the bit: slices hold whole batches.

    Args:
        ensemble: on the CPU.
        examples: reference to packed examples.
        num_rows: rows they have.
        actors: of the workers.
    """
    packed = ray.put(pack(ensemble))
    batches = -(-num_rows // BATCH_SIZE)
    each = max(1, -(-batches // (2 * len(actors)))) * BATCH_SIZE
    slices = [(first, min(first + each, num_rows)) for first in range(0, max(num_rows, 1), each)]
    calls = [
        actors[place % len(actors)].predict.remote(packed, examples, first, last)
        for place, (first, last) in enumerate(slices)
    ]
    try:
        parts = ray.get(calls)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    return torch.cat([as_tensor(part, torch.float32) for part in parts], dim=1)
