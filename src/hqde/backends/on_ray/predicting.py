"""Members predict side by side: on a run's actors, or on whatever CPUs and GPUs a cluster has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from hqde.backends.on_ray.cluster import join, node_resources, num_fitting
from hqde.backends.on_ray.failures import cause_of
from hqde.backends.on_ray.shipping import Parcel, as_array, as_tensor, pack, unpack
from hqde.backends.ray_settings import RaySettings
from hqde.data import Examples, Inputs, SubsetExamples, num_rows, take_rows
from hqde.ensemble import BATCH_SIZE, Ensemble
from hqde.errors import ConfigError
from hqde.memory import freed_memory_kept

SLICES_PER_PLACE = 4


def row_slices(num_rows: int, num_places: int) -> list[tuple[int, int]]:
    """First and past-the-last row of each slice: whole batches, so that the bits are those of one process.

    >>> row_slices(600, 1)
    [(0, 256), (256, 512), (512, 600)]
    """
    batches = -(-num_rows // BATCH_SIZE)
    each = max(1, -(-batches // (SLICES_PER_PLACE * num_places))) * BATCH_SIZE
    return [(first, min(first + each, num_rows)) for first in range(0, max(num_rows, 1), each)]


def predict_members(
    ensemble: Ensemble,
    examples: Any,
    slices: Sequence[tuple[int, int]],
    owners: Sequence[int],
    actors: Sequence[Any],
) -> Tensor:
    """What ``Ensemble.predict_members`` returns, to the bit.

    One call for each actor: members take longer to unpack than some batches to predict.

    Args:
        ensemble: on the CPU.
        examples: reference to packed examples.
        slices: of the rows, in order.
        owners: for each slice, which of the actors predicts it.
        actors: one that is gone, or dies meanwhile, is stood in for by this process.
    """
    packed = ray.put(pack(ensemble))
    places: dict[int, list[int]] = defaultdict(list)
    for place, owner in enumerate(owners):
        places[owner].append(place)
    calls = {
        owner: actors[owner].predict.remote(packed, examples, [slices[place] for place in own])
        for owner, own in places.items()
        if actors[owner] is not None
    }
    parts: dict[int, Tensor] = {}
    for owner, own in places.items():
        found = _result(calls.get(owner), ensemble, examples, [slices[place] for place in own])
        parts |= dict(zip(own, found, strict=True))
    return torch.cat([parts[place] for place in range(len(slices))], dim=1)


def _result(call: Any, ensemble: Ensemble, examples: Any, slices: Sequence[tuple[int, int]]) -> list[Tensor]:
    try:
        if call is not None:
            return [as_tensor(part, torch.float32) for part in ray.get(call)]
    except RayTaskError as error:
        raise cause_of(error) from None
    except RayError:
        pass  # the actor died; its next order brings it back, and the rows cannot wait for that
    rows: Examples = unpack(ray.get(examples))
    return [
        ensemble.predict_members(SubsetExamples(rows, torch.arange(first, last))) for first, last in slices
    ]


def predict_on_cluster(
    ensemble: Ensemble, data: Examples | Inputs, settings: RaySettings | None = None, *, threads: int = 0
) -> Tensor:
    """What ``ensemble.predict_members(data)`` returns, predicted by tasks on a Ray cluster.

    Each task takes whole batches of rows, and a task whose machine is lost is run again elsewhere. Joins the
    cluster, or starts a Ray on this machine, as a run would, and leaves it again.

    Args:
        ensemble: on the CPU; tasks with GPUs move it there.
        data: rows, labelled or not.
        settings: ``address``; ``num_cpus`` (0 means 1) and ``num_gpus`` of each task.
        threads: torch threads of each task; 0 takes one for each of its CPUs.

    Returns:
        ``(m, n, c)`` probabilities, or ``(m, n, 2)`` means and variances.

    Raises:
        ConfigError: nothing answers at the address, or no node has room for a task.
    """
    settings = settings or RaySettings()
    ours = join(settings)
    try:
        num_cpus, num_gpus = settings.num_cpus or 1.0, settings.num_gpus
        places = num_fitting(num_cpus, node_resources("CPU"))
        if num_gpus:
            places = min(places, num_fitting(num_gpus, node_resources("GPU")))
        if not places:
            raise ConfigError(
                f"no node has room for a task of {num_cpus:g} CPUs and {num_gpus:g} GPUs; the cluster has "
                f"{sum(node_resources('CPU')):g} CPUs and {sum(node_resources('GPU')):g} GPUs"
            )
        task = ray.remote(_predict_rows).options(num_cpus=num_cpus, num_gpus=num_gpus)
        packed, rows = ray.put(pack(ensemble)), ray.put(pack(data))
        count = num_rows(data) if isinstance(data, Tensor | tuple | dict) else len(data)
        calls = [
            task.remote(packed, rows, first, last, threads or max(1, int(num_cpus)), num_gpus > 0)
            for first, last in row_slices(count, places)
        ]
        return torch.cat([as_tensor(part, torch.float32) for part in ray.get(calls)], dim=1)
    except RayTaskError as error:
        raise cause_of(error) from None
    finally:
        if ours:
            ray.shutdown()


@freed_memory_kept()
def _predict_rows(
    ensemble: Parcel, data: Parcel, first: int, last: int, threads: int, on_gpu: bool
) -> np.ndarray:
    torch.set_num_threads(threads)
    members, rows = unpack(ensemble), unpack(data)
    index = torch.arange(first, last)
    if on_gpu:
        members.to("cuda")
    inputs = isinstance(rows, Tensor | tuple | dict)
    return as_array(
        members.predict_members(take_rows(rows, index) if inputs else SubsetExamples(rows, index))
    )
