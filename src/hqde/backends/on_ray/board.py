"""Which vectors are in the object store already, and where: each is put there once."""

from __future__ import annotations

from typing import Any

import ray
from torch import Tensor

from hqde.backends.on_ray.shipping import as_array

Bounds = tuple[tuple[int, int], ...]


class Board:
    """Vectors of this process, by identity, and references to their pieces out there.

    A vector is remembered from one ``turn`` to the end of the next, so that what a round made can start the
    following one; what is remembered must not be written to.
    """

    def __init__(self) -> None:
        self._now: dict[int, tuple[Tensor, Bounds, list[Any]]] = {}
        self._before: dict[int, tuple[Tensor, Bounds, list[Any]]] = {}

    def pieces(self, vector: Tensor, bounds: Bounds | None = None) -> list[Any]:
        """References to a vector's pieces, as they are or cut at ``bounds``; put out there if need be."""
        found = self._now.get(id(vector)) or self._before.get(id(vector))
        if found is None or (bounds is not None and found[1] != bounds):
            cuts = bounds or ((0, len(vector)),)
            array = as_array(vector)
            found = (vector, cuts, [ray.put(array[first:last]) for first, last in cuts])
        self._now[id(vector)] = found
        return found[2]

    def remember(self, vector: Tensor, bounds: Bounds, refs: list[Any]) -> None:
        """The pieces of a vector are out there."""
        self._now[id(vector)] = (vector, bounds, refs)

    def forget(self, vector: Tensor) -> None:
        """The pieces of a vector are lost; the next who asks puts them there again."""
        self._now.pop(id(vector), None)
        self._before.pop(id(vector), None)

    def turn(self) -> None:
        """A new round begins: drop what the round before did not use."""
        self._before, self._now = self._now, {}

    def clear(self) -> None:
        """Drop everything."""
        self._now, self._before = {}, {}
