"""What an error in each tensor costs, measured on rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hqde.compression import PackedCodec, decode
from hqde.data import Examples, Inputs
from hqde.ensemble.members import Member

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble

WIDTHS = (2, 4)
"""Bits at which a tensor is tried."""

MAX_ROWS = 128
"""Rows that are enough, because the measure has no noise from labels."""

TINY = 1e-12
LEAST_SHARE = 1e-3  # of the median: rows that happen not to use a tensor must not starve it


def sample_rows(rows: Examples, *, most: int = MAX_ROWS) -> Inputs:
    """The inputs of up to ``most`` rows, evenly spread."""
    count = min(most, len(rows))
    return rows.fetch(torch.arange(count) * len(rows) // max(1, count)).inputs


def measure_sensitivity(
    ensemble: Ensemble,
    member: Member,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """How much a member's predictions move per squared error of each tensor.

    Each tensor alone is quantised, at 2 and at 4 bits, and the member's predictions are compared with its own
    before. The measure is the increase of the NLL that is to be expected if labels are drawn from what the
    member predicted: the Kullback-Leibler divergence KL(before ‖ after), which is quadratic in the error, has
    no noise from labels and is never negative. For points (MSE) it is the mean squared change.

    Args:
        ensemble: that the member belongs to.
        member: left as it is.
        tensors: by name; those that are to be quantised.
        inputs: raw rows, as from ``sample_rows``.
        on_step: called after each of the ``len(WIDTHS) * len(tensors)`` evaluations.

    Returns:
        by name, the geometric mean over the widths of divergence per squared error; at least a thousandth of
        the median.
    """
    probe = member.with_model(copy.deepcopy(member.model))
    alone = ensemble.with_members([probe])
    before = alone.predict_members(inputs)[0]
    found: dict[str, float] = {}
    for name, tensor in tensors.items():
        target = probe.model.get_parameter(name)
        flat, ratios = tensor.cpu().reshape(-1), []
        for bits in WIDTHS:
            rough = decode(PackedCodec(bits=bits, allocation="uniform").encode(flat))
            error = float((rough.double() - flat.double()).square().sum())
            if error > 0.0:
                with torch.no_grad():
                    target.copy_(rough.view(tensor.shape))
                moved = divergence(before, alone.predict_members(inputs)[0], loss=ensemble.loss)
                ratios.append(max(moved, TINY) / error)
            on_step()
        with torch.no_grad():
            target.copy_(tensor)
        found[name] = float(torch.tensor(ratios).double().log().mean().exp()) if ratios else 0.0
    least = LEAST_SHARE * median(found.values()) if found else 0.0
    return {name: max(value, least) for name, value in found.items()}


def divergence(before: Tensor, after: Tensor, *, loss: str) -> float:
    """How far predictions moved: mean over rows, in nats; for ``mse`` in squared target units.

    Args:
        before, after: ``(n, c)`` probabilities, or ``(n, 2)`` mean and variance.
        loss: what the models' outputs mean.

    >>> probs = torch.tensor([[0.5, 0.5]])
    >>> divergence(probs, torch.tensor([[0.25, 0.75]]), loss="cross_entropy")
    0.143...
    """
    before, after = before.double(), after.double()
    if loss == "cross_entropy":
        first, second = (
            (probs.clamp_min(1e-30) / probs.clamp_min(1e-30).sum(dim=1, keepdim=True)).log()
            for probs in (before, after)
        )
        return float((first.exp() * (first - second)).sum(dim=1).mean())
    gap = (before[:, 0] - after[:, 0]).square()
    if loss == "mse":
        return float(gap.mean())
    wide, wider = before[:, 1], after[:, 1]
    return float((0.5 * ((wider / wide).log() + (wide + gap) / wider - 1.0)).mean())
