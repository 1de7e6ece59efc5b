"""Members that predict side by side in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from hqde.data import Examples
from hqde.ensemble.ensemble import BATCH_SIZE, Ensemble
from hqde.ensemble.inputs import input_batches
from hqde.ensemble.prediction import predict_members
from hqde.errors import PreconditionError


def predict_side_by_side(
    ensemble: Ensemble, examples: Examples, *, lanes: int, threads: int, batch_size: int = BATCH_SIZE
) -> Tensor:
    """What ``ensemble.predict_members`` returns, to the bit for as many torch threads, on several cores.

    Each batch is read and normalised once; then every member predicts it, in whichever lane is free.

    Args:
        ensemble: its members, on the CPU.
        examples: labelled rows; the labels are left out.
        lanes: members side by side, at least 1.
        threads: torch threads of each, at least 1.
        batch_size: rows at once.

    Returns:
        ``(m, n, c)`` probabilities, or ``(m, n, 2)`` means and variances.

    Raises:
        PreconditionError: no lanes or no threads, or rows of another shape than in training.
        NonFiniteError: an input or a member's output is NaN or infinite.

    Example:
        >>> from hqde.data import Normalization, Schema, TensorExamples
        >>> from hqde.ensemble import Member
        >>> from hqde.models import ModelSpec
        >>> spec = ModelSpec("torch.nn:Linear", {"in_features": 2, "out_features": 3})
        >>> members = [Member(index, spec, spec.build()) for index in range(4)]
        >>> schema = Schema("classification", "tabular", ("a", "b", "c"), (2,))
        >>> ensemble = Ensemble(members, schema=schema, normalization=Normalization.identity())
        >>> rows = TensorExamples(torch.ones(5, 2), torch.zeros(5, dtype=torch.int64))
        >>> found = predict_side_by_side(ensemble, rows, lanes=2, threads=1)
        >>> torch.allclose(found, ensemble.predict_members(rows))
        True
    """
    if lanes < 1 or threads < 1:
        raise PreconditionError(f"lanes and threads are at least 1, got {lanes} and {threads}")
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(lanes, "hqde-lane", torch.set_num_threads, (threads,)) as pool:
            return predict_members(
                ensemble.members,
                input_batches(examples, batch_size=batch_size),
                schema=ensemble.schema,
                normalization=ensemble.normalization,
                target_scale=ensemble.target_scale,
                loss=ensemble.loss,
                device=ensemble.device,
                pool=pool,
            )
    finally:
        torch.set_num_threads(before)  # a lane's number would be that of every thread that starts from now on
