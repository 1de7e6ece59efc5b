"""Members predict on the workers' actors, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from hqde.backends.on_ray.failures import cause_of
from hqde.backends.on_ray.shipping import as_tensor, pack, unpack
from hqde.data import SubsetExamples
from hqde.ensemble import BATCH_SIZE, Ensemble

SLICES_PER_ACTOR = 4


def row_slices(num_rows: int, num_actors: int) -> list[tuple[int, int]]:
    """First and past-the-last row of each slice: whole batches, so that the bits are those of one process.

    >>> row_slices(600, 1)
    [(0, 256), (256, 512), (512, 600)]
    """
    batches = -(-num_rows // BATCH_SIZE)
    each = max(1, -(-batches // (SLICES_PER_ACTOR * num_actors))) * BATCH_SIZE
    return [(first, min(first + each, num_rows)) for first in range(0, max(num_rows, 1), each)]


def predict_members(
    ensemble: Ensemble, examples: Any, slices: Sequence[tuple[int, int]], actors: Sequence[Any]
) -> Tensor:
    """What ``Ensemble.predict_members`` returns, to the bit.

    Args:
        ensemble: on the CPU.
        examples: reference to packed examples.
        slices: of the rows, in order.
        actors: for each slice; one that is gone, or dies meanwhile, is stood in for by this process.
    """
    packed = ray.put(pack(ensemble))
    calls = [
        None if actor is None else actor.predict.remote(packed, examples, first, last)
        for actor, (first, last) in zip(actors, slices, strict=True)
    ]
    parts = [
        _result(call, ensemble, examples, first, last)
        for call, (first, last) in zip(calls, slices, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _result(call: Any, ensemble: Ensemble, examples: Any, first: int, last: int) -> Tensor:
    try:
        if call is not None:
            return as_tensor(ray.get(call), torch.float32)
    except RayTaskError as error:
        raise cause_of(error) from None
    except RayError:
        pass  # the actor died; its next order brings it back, and the rows cannot wait for that
    rows = SubsetExamples(unpack(ray.get(examples)), torch.arange(first, last))
    return ensemble.predict_members(rows)
