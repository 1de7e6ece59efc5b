"""Dropout masks of stacked workers: those that each worker alone would draw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from hqde.errors import PreconditionError
from hqde.models import Dropout, set_mask_source
from hqde.models.dropout import LEVELS


@dataclass(frozen=True)
class Call:
    """One call of a dropout layer in a forward pass.

    Attributes:
        layer: its place among the model's dropout layers.
        shape: of its inputs, without the rows.
        dtype: of its inputs.
    """

    layer: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class MaskPlan:
    """The calls of a forward pass, in order."""

    calls: tuple[Call, ...]

    def draw(
        self, rows: int, generators: Sequence[torch.Generator], rates: Sequence[Sequence[float]]
    ) -> tuple[Tensor, ...]:
        """The masks of a step, ``(w, rows, …)`` for each call.

        Args:
            rows: of each worker's batch.
            generators: of each worker.
            rates: of each worker's dropout layers.
        """
        if not self.calls:
            return ()
        words = [-(-rows * prod(call.shape) // 4) for call in self.calls]
        device = generators[0].device
        # One row of draws per worker: drawn in one go they are those that each call would draw for itself.
        drawn = torch.empty(len(generators), sum(words), dtype=torch.int64, device=device)
        for row, generator in enumerate(generators):
            own = [count if rates[row][c.layer] else 0 for c, count in zip(self.calls, words, strict=True)]
            into = drawn[row] if all(own) else torch.empty(sum(own), dtype=torch.int64, device=device)
            into.random_(-(2**63), None, generator=generator)
            if not all(own):
                _spread(into, drawn[row], own, words)
        masks = []
        for call, part in zip(self.calls, drawn.split(words, dim=1), strict=True):
            count = rows * prod(call.shape)
            dropped = [min(LEVELS - 1, round(own[call.layer] * LEVELS)) for own in rates]
            limit = torch.tensor([d - LEVELS // 2 for d in dropped], dtype=torch.int16, device=device)
            scale = torch.tensor([LEVELS / (LEVELS - d) for d in dropped], device=device)
            mask = _mask(part.contiguous().view(torch.int16), limit, scale, count, call.dtype)
            masks.append(mask.view(len(generators), rows, *call.shape))
        return tuple(masks)


def _mask(words: Tensor, limit: Tensor, scale: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """``(w, count)``: each worker's scale where its limit is reached, else 0."""
    if words.device.type == "cpu" and dtype == torch.float32:
        from hqde.training import stack_kernels as kernels  # numba takes half a second to import

        found = torch.empty(len(words), count)
        kernels.masks(words.numpy(), limit.numpy(), scale.numpy(), found.numpy())
        return found
    kept = words[:, :count] >= limit.unsqueeze(1)
    return kept.to(dtype).mul_(scale.unsqueeze(1).to(dtype))


def plan_masks(
    model: nn.Module, inputs: object, rows: int, *, autocast: AbstractContextManager[object]
) -> MaskPlan:
    """Which dropout layers a forward pass calls, with what shapes.

    Args:
        model: in training mode; called once with ``inputs``.
        inputs: of one worker.
        rows: how many.
        autocast: the precision of the forward pass.

    Raises:
        PreconditionError: a layer's inputs do not have the rows first.
    """
    places = {id(m): place for place, m in enumerate(m for m in model.modules() if isinstance(m, Dropout))}
    calls: list[Call] = []

    def note(layer: Dropout, x: Tensor) -> Tensor:
        if x.shape[0] != rows:
            raise PreconditionError(
                f"a dropout layer is given {tuple(x.shape)} for {rows} rows, and stacked workers need rows "
                "first; train them with the backend 'local'"
            )
        calls.append(Call(places[id(layer)], tuple(x.shape[1:]), x.dtype))
        return torch.ones_like(x)

    set_mask_source(note, model)
    with torch.no_grad(), autocast:
        model(inputs)
    return MaskPlan(tuple(calls))


def _spread(drawn: Tensor, into: Tensor, own: Sequence[int], words: Sequence[int]) -> None:
    """Put draws where the calls that drew them look; a layer that drops nothing draws nothing."""
    into.zero_()
    source = target = 0
    for count, room in zip(own, words, strict=True):
        into[target : target + count] = drawn[source : source + count]
        source, target = source + count, target + room
