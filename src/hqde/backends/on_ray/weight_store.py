"""What must survive the loss of a machine, kept on several: committed weights, server and worker states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any
from zlib import crc32

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hqde.backends.on_ray.cluster import alive_nodes
from hqde.backends.on_ray.shipping import checksum
from hqde.errors import ConfigError, HqdeError


class LostError(HqdeError, LookupError):
    """No sound copy of a cell is left. Attribute: ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no sound copy of '{name}' is left on any node")
        self.name = name


class DamagedCopyError(HqdeError, ValueError):
    """A copy does not check to what was written."""


class Shelf:
    """One node's copies. A value is an array, or a ``Parcel``."""

    def __init__(self) -> None:
        self._cells: dict[str, tuple[int, Any, int]] = {}

    def put(self, name: str, version: int, value: Any) -> int:
        """Keep a copy of this process's own; returns its checksum. An older version replaces no newer one."""
        held = self._cells.get(name)
        if held is None or held[0] <= version:
            own = _copy(value)
            self._cells[name] = (version, own, _checksum(own))
        return self._cells[name][2]

    def get(self, name: str, version: int) -> Any:
        """The value of that version, checked.

        Raises:
            DamagedCopyError: it is not there, or not what was written.
        """
        if not self.is_sound(name, version):
            raise DamagedCopyError(f"version {version} of '{name}' is missing or damaged here")
        return self._cells[name][1]

    def is_sound(self, name: str, version: int) -> bool:
        """Whether a cell is there and checks."""
        held = self._cells.get(name)
        return held is not None and held[0] == version and _checksum(held[1]) == held[2]

    def drop(self, names: Iterable[str]) -> None:
        """Forget cells."""
        for name in names:
            self._cells.pop(name, None)

    def damage(self, name: str) -> None:
        """Flip a bit of a cell, for tests of what follows."""
        version, value, right = self._cells[name]
        array = value if isinstance(value, np.ndarray) else value[1][0]
        array.reshape(-1).view(np.uint8)[0] ^= 1
        self._cells[name] = (version, value, right)


@dataclass
class Cell:
    """One value: its version, its checksum, and the nodes that hold it."""

    version: int
    checksum: int | None
    nodes: list[str]


class WeightStore:
    """Named, versioned values, each on ``replication_factor`` different nodes.

    Reads survive the loss of ``replication_factor - 1`` nodes: ``heal`` then makes new copies elsewhere, and
    replaces copies that do not check. The driver keeps the list of what is where.

    Args:
        replication_factor: copies of each value.

    Raises:
        ConfigError: more copies than nodes.
    """

    def __init__(self, replication_factor: int) -> None:
        nodes = alive_nodes()
        if replication_factor > len(nodes):
            raise ConfigError(
                f"replication_factor={replication_factor} needs as many nodes, the cluster has {len(nodes)}; "
                f"use ray.replication_factor={len(nodes)}"
            )
        self.replication_factor = replication_factor
        self.cells: dict[str, Cell] = {}
        self.shelves: dict[str, Any] = {node: _new_shelf(node) for node in nodes}
        self._turn = count()
        self._written: list[tuple[str, str, Any]] = []

    def keep(self, name: str, version: int, value: Any) -> None:
        """Copy a value, or what a reference stands for, to its nodes; the copies are under way on return."""
        nodes = self._choose(self.replication_factor)
        self.cells[name] = Cell(version, None, nodes)
        for node in nodes:
            self._written.append((name, node, self.shelves[node].put.remote(name, version, value)))

    def settle(self) -> None:
        """Wait for the copies under way; one that failed is left for ``heal``."""
        for name, node, ack in self._written:
            cell = self.cells.get(name)
            try:
                found = ray.get(ack)
            except RayError:
                found = None
            if cell is None or node not in cell.nodes:
                continue
            if found is None or (cell.checksum is not None and found != cell.checksum):
                cell.nodes.remove(node)
            else:
                cell.checksum = found
        self._written = []

    def reference(self, name: str) -> Any:
        """A reference to a value, from one of its nodes in turn."""
        cell = self.cells[name]
        if not cell.nodes:
            raise LostError(name)
        node = cell.nodes[next(self._turn) % len(cell.nodes)]
        return self.shelves[node].get.remote(name, cell.version)

    def read(self, name: str) -> Any:
        """A value in this process, from the first copy that checks.

        Raises:
            LostError: none does.
        """
        self.settle()
        cell = self.cells[name]
        for node in list(cell.nodes):
            try:
                return ray.get(self.shelves[node].get.remote(name, cell.version))
            except RayError:
                cell.nodes.remove(node)
        raise LostError(name)

    def drop(self, names: Iterable[str]) -> None:
        """Forget values everywhere."""
        gone = [name for name in names if self.cells.pop(name, None) is not None]
        if gone:
            for shelf in self.shelves.values():
                shelf.drop.remote(gone)

    def heal(self) -> list[str]:
        """Bring every value back to its number of copies; returns a sentence for each copy that was made.

        A value without a sound copy is dropped: whoever reads it is told.
        """
        self.settle()
        alive = alive_nodes()
        self.shelves = {node: self.shelves.get(node) or _new_shelf(node) for node in alive}
        made = []
        for name, cell in list(self.cells.items()):
            sound = [node for node in cell.nodes if node in alive and self._is_sound(node, name, cell)]
            wanted = min(self.replication_factor, len(alive))
            if not sound:
                del self.cells[name]
                made.append(f"'{name}' is lost: no sound copy is left")
                continue
            others = [node for node in cell.nodes if node in alive] + self._choose(len(alive))
            for node in dict.fromkeys(node for node in others if node not in sound):
                if len(sound) >= wanted:
                    break
                if self._copy_to(node, name, cell, sound[0]):
                    why = "was damaged" if node in cell.nodes else "went with its node"
                    made.append(f"a copy of '{name}' {why}: made anew on node {node[:8]}")
                    sound.append(node)
            cell.nodes = sound
        return made

    def close(self) -> None:
        """Kill the shelves."""
        for shelf in self.shelves.values():
            ray.kill(shelf)
        self.shelves, self.cells, self._written = {}, {}, []

    def _choose(self, number: int) -> list[str]:
        """Nodes in turn, so that all hold about as much."""
        nodes = sorted(self.shelves)
        first = next(self._turn) % len(nodes)
        return (nodes[first:] + nodes[:first])[:number]

    def _copy_to(self, node: str, name: str, cell: Cell, source: str) -> bool:
        """Make one more copy; false when the node turns out to be gone, which Ray may learn late."""
        value = self.shelves[source].get.remote(name, cell.version)
        self.shelves[node].drop.remote([name])
        try:
            return bool(ray.get(self.shelves[node].put.remote(name, cell.version, value)) == cell.checksum)
        except RayError:
            return False

    def needs_healing(self) -> bool:
        """Whether nodes came or went, or a value has fewer copies than it should."""
        alive = alive_nodes()
        wanted = min(self.replication_factor, len(alive))
        return set(alive) != set(self.shelves) or any(len(c.nodes) < wanted for c in self.cells.values())

    def _is_sound(self, node: str, name: str, cell: Cell) -> bool:
        try:
            return bool(ray.get(self.shelves[node].is_sound.remote(name, cell.version)))
        except RayError:
            return False


def _new_shelf(node: str) -> Any:
    where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_restarts=0)(Shelf).options(scheduling_strategy=where).remote()


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    head, buffers, references = value
    return head, [buffer.copy() for buffer in buffers], references


def _checksum(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return checksum(value)
    head, buffers, _ = value
    found = crc32(head)
    for buffer in buffers:
        found = crc32(buffer.reshape(-1).view(np.uint8).data, found)
    return found
