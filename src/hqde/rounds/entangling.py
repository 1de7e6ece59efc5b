"""Perturbations that cancel over each group, dealt out to its workers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hqde.quantum import entangled_coefficients
from hqde.rounds.experiment import Experiment
from hqde.topology import RoundPlan
from hqde.training import Perturbation, count_samples


def entangled_perturbations(
    experiment: Experiment, plan: RoundPlan, shards: Mapping[int, Tensor]
) -> dict[int, Perturbation]:
    """What each worker's start is moved by in a round, by worker id; empty where nothing is.

    Their mean, weighted by the samples of the round, is 0, so the group's mean stays where it is. The size
    falls in a straight line to nothing at the end of the run.

    Args:
        experiment: how large, and of which seed.
        plan: of the round.
        shards: the rows of each worker that takes part, by worker id.
    """
    size = experiment.diversity.entangled_noise * (1.0 - plan.progress[0])
    found: dict[int, Perturbation] = {}
    for group in plan.groups if size > 0.0 else ():
        counts = {
            worker: count_samples(
                len(shards[worker]),
                experiment.recipe_of(worker).batch_size,
                first_batch=plan.first_batch,
                num_batches=plan.num_batches,
            )
            for worker in group
            if worker in shards
        }
        workers = [worker for worker, count in counts.items() if count]
        if len(workers) < 2:
            continue
        total = sum(counts.values())
        pairs = entangled_coefficients([counts[worker] / total for worker in workers])
        stream = ("group", group[0], "entangled", plan.index)
        for worker, (cosine, sine) in zip(workers, pairs, strict=True):
            found[worker] = Perturbation(stream, size * cosine, size * sine)
    return found
