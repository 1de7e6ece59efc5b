"""Which vectors are in the object store already, and where: each is put there once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import ray
from torch import Tensor

from hqde.backends.on_ray.shipping import as_array
from hqde.backends.on_ray.weight_store import WeightStore
from hqde.compression import Packet

Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Posted:
    """A vector of this process and its pieces out there: references, and names in the weight store.

    ``is_lost`` once a machine went that may have held them; from then on the store's copies are read.
    """

    vector: Tensor
    bounds: Bounds
    refs: list[Any]
    names: list[str]
    is_lost: bool = False


class Board:
    """Vectors of this process, by identity, and where their pieces are.

    A vector is remembered from one ``turn`` to the end of the next, so that what a round made can start the
    following one; what is remembered must not be written to.

    Args:
        store: keeps copies of the pieces on several nodes, for when their machine is gone; ``None`` leaves
            them where they were made.
    """

    def __init__(self, store: WeightStore | None = None) -> None:
        self._store = store
        self._now: dict[int, Posted] = {}
        self._before: dict[int, Posted] = {}
        self._number = count()
        self._version = 0

    def pieces(self, vector: Tensor, bounds: Bounds | None = None) -> list[Any]:
        """References to a vector's pieces, as they are or cut at ``bounds``; put out there if need be."""
        found = self._now.get(id(vector)) or self._before.get(id(vector))
        if found is not None and found.is_lost and not self._has_copies(found):
            found = None
        if found is None or (bounds is not None and found.bounds != bounds):
            cuts = bounds or ((0, len(vector)),)
            array = as_array(vector)
            self.remember(vector, cuts, [ray.put(array[first:last]) for first, last in cuts])
            found = self._now[id(vector)]
        self._now[id(vector)] = found
        if found.is_lost and self._store is not None:
            return [self._store.reference(name) for name in found.names]
        return found.refs

    def packet(self, packet: Packet) -> list[Any]:
        """A reference to a packet, put out there once; it is not kept on other nodes."""
        payload = packet.payload
        if id(payload) not in self._now:
            self._now[id(payload)] = Posted(payload, (), [ray.put(as_array(payload))], [])
        return self._now[id(payload)].refs

    def remember(self, vector: Tensor, bounds: Bounds, refs: list[Any]) -> None:
        """The pieces of a vector are out there."""
        names: list[str] = []
        if self._store is not None:
            number = next(self._number)
            names = [f"vector-{number}/{piece}" for piece in range(len(refs))]
            for name, ref in zip(names, refs, strict=True):
                self._store.keep(name, self._version, ref)
            self._store.settle()
        self._now[id(vector)] = Posted(vector, bounds, refs, names)

    def lose(self, *vectors: Tensor) -> None:
        """The pieces of these may be lost: the next who asks gets copies, or they are put there again."""
        for vector in vectors:
            for shelf in (self._now, self._before):
                if id(vector) in shelf:
                    shelf[id(vector)] = replace(shelf[id(vector)], is_lost=True)

    def turn(self) -> None:
        """A new round begins: drop what the round before did not use."""
        self._version += 1
        kept = {id(posted) for posted in self._now.values()}
        self._drop(*(posted for posted in self._before.values() if id(posted) not in kept))
        self._before, self._now = self._now, {}

    def clear(self) -> None:
        """Drop everything."""
        self._now, self._before, self._store = {}, {}, None

    def _has_copies(self, posted: Posted) -> bool:
        cells = {} if self._store is None else self._store.cells
        return bool(posted.names) and all(name in cells and cells[name].nodes for name in posted.names)

    def _drop(self, *posted: Posted | None) -> None:
        if self._store is not None:
            self._store.drop(name for each in posted if each is not None for name in each.names)
