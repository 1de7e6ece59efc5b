"""Dropout masks of stacked workers: those that each worker alone would draw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hqde.errors import PreconditionError
from hqde.models import Dropout, scaled_mask, set_mask_source
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
class Draws:
    """What the masks of a step are made of: of 16 bits each, a number below the limit drops an element.

    Attributes:
        layers: the dropout layer of each call.
        words: ``(w, k)`` int64, four draws in each.
        firsts: the draw that a call's begin with.
        limits: ``(w, calls)`` int16.
        scales: ``(w, calls)``, of elements that are kept.
    """

    layers: tuple[int, ...]
    words: Tensor
    firsts: tuple[int, ...]
    limits: Tensor
    scales: Tensor

    def place_of(self, layer: int) -> int:
        """The call of a dropout layer; -1 if it is not called."""
        return self.layers.index(layer) if layer in self.layers else -1

    def arrays(self) -> tuple[Any, ...]:
        """Draws ``(w, 4k)``, firsts, limits and scales, for compiled loops."""
        draws = self.words.view(torch.int16).numpy()
        return draws, np.array(self.firsts, dtype=np.int64), self.limits.numpy(), self.scales.numpy()


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
        draws = self.draws(rows, generators, rates)
        masks = []
        for place, (call, first) in enumerate(zip(self.calls, draws.firsts, strict=True)):
            count, words = rows * prod(call.shape), draws.words.view(torch.int16)
            limits, scales = draws.limits[:, place : place + 1], draws.scales[:, place : place + 1]
            mask = scaled_mask(words[:, first : first + count], limits, scales, call.dtype)
            masks.append(mask.view(len(generators), rows, *call.shape))
        return tuple(masks)

    def draws(
        self, rows: int, generators: Sequence[torch.Generator], rates: Sequence[Sequence[float]]
    ) -> Draws:
        """What the masks of a step are made of; arguments as for ``draw``."""
        words = [-(-rows * prod(call.shape) // 4) for call in self.calls]
        device = generators[0].device
        # One row of draws per worker: drawn in one go they are those that each call would draw for itself.
        drawn = torch.empty(len(generators), sum(words), dtype=torch.int64, device=device)
        for row, (generator, draws) in enumerate(zip(generators, drawn.unbind(0), strict=True)):
            own = [count if rates[row][c.layer] else 0 for c, count in zip(self.calls, words, strict=True)]
            into = draws if all(own) else torch.empty(sum(own), dtype=torch.int64, device=device)
            into.random_(-(2**63), None, generator=generator)
            if not all(own):
                _spread(into, draws, own, words)
        layers = tuple(call.layer for call in self.calls)
        dropped = [[min(LEVELS - 1, round(own[layer] * LEVELS)) for layer in layers] for own in rates]
        limits = torch.tensor(dropped, dtype=torch.int32, device=device) - LEVELS // 2
        scales = LEVELS / (LEVELS - torch.tensor(dropped, dtype=torch.float64, device=device))
        firsts = tuple(accumulate((4 * count for count in words[:-1]), initial=0)) if words else ()
        return Draws(layers, drawn, firsts, limits.to(torch.int16), scales.float())


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
