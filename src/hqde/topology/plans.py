"""How one aggregation is spread over machines: pure plans, and a model of what each costs.

- ``flat``: every row goes to the driver, which adds them up. Its link carries O(n·d) bytes.
- ``tree``: tasks add up ``fan_in`` rows each, and their sums are added up in turn. The busiest link carries
  O(fan_in·d), and there are ⌈log n / log fan_in⌉ levels. For weighted sums only.
- ``sharded`` (MapReduce): every worker cuts its row into coordinate shards, one task combines one shard of
  all rows. With as many shards as nodes each link carries O(d), whatever n. For every rule: the inner
  products that a rule decides on are summed over the shards first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hqde.errors import PreconditionError

Kind = Literal["flat", "tree", "sharded"]


@dataclass(frozen=True)
class Plan:
    """One group's aggregation.

    Attributes:
        kind: how it is spread.
        fan_in: rows that one task of a tree adds up, a power of two: only then do its sums have the bits of
            the flat one.
        bounds: the pieces each worker's row ``(d,)`` is cut into: first and past-the-last coordinate.
    """

    kind: Kind
    fan_in: int
    bounds: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Links:
    """What a cluster is made of, for the cost model. The rates were fitted by ``benchmarks/scale.py``.

    Attributes:
        nodes: machines; workers and reducers are spread evenly over them.
        cores: of each machine, all of them free while a group is synchronised.
        bytes_per_s: of each machine's link, in each direction.
        latency_s: of each step that waits for the one before it.
        call_s: the driver's work for one call of a worker or a reducer.
        object_s: the driver's work for one reference that is handed to a call or asked for.
        combine_bytes_per_s: bytes of rows that one core checks and adds up.
        store_bytes_per_s: bytes that one core writes to the object store or copies out of it.
    """

    nodes: int
    cores: int = 2
    bytes_per_s: float = 1.25e9
    latency_s: float = 2.8e-3
    call_s: float = 4.8e-4
    object_s: float = 8e-5
    combine_bytes_per_s: float = 2.9e9
    store_bytes_per_s: float = 3.2e9


@dataclass(frozen=True)
class Cost:
    """What one synchronisation of one group costs. All but ``seconds`` are counts, whatever the rates.

    Attributes:
        seconds: from the last update to the new weights at every worker.
        steps: that wait for each other.
        calls, objects: that the driver makes and handles, one after the other.
        combined_bytes: of rows, checked and added up by the busiest core.
        stored_bytes: into and out of the object store, on the path that everything waits for.
        link_bytes: on that path, through the link of the machine that it waits for.
        driver_bytes: through the driver's link, both directions.
        busiest_bytes: through the busiest machine's link, both directions, the driver's included.
    """

    seconds: float
    steps: int
    calls: int
    objects: int
    combined_bytes: float
    stored_bytes: float
    link_bytes: float
    driver_bytes: float
    busiest_bytes: float


def tree_depth(num_rows: int, fan_in: int) -> int:
    """Levels of a tree over ``num_rows`` leaves.

    >>> tree_depth(64, 8), tree_depth(65, 8), tree_depth(1, 8)
    (2, 3, 0)
    """
    depth, left = 0, num_rows
    while left > 1:
        left, depth = math.ceil(left / fan_in), depth + 1
    return depth


def tree_blocks(num_rows: int, fan_in: int) -> list[tuple[int, int]]:
    """Which neighbouring rows each task of a tree's lowest level adds up.

    >>> tree_blocks(10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    return [(first, min(first + fan_in, num_rows)) for first in range(0, num_rows, fan_in)]


def shard_bounds(size: int, num_shards: int, *, block: int) -> tuple[tuple[int, int], ...]:
    """Coordinate shards of ``size`` elements: at most ``num_shards``, cut at multiples of ``block``.

    Example:
        >>> shard_bounds(10, 3, block=2)
        ((0, 4), (4, 8), (8, 10))
        >>> shard_bounds(3, 4, block=4)
        ((0, 3),)
    """
    each = block * max(1, math.ceil(size / block / num_shards))
    return tuple((first, min(first + each, size)) for first in range(0, max(size, 1), each))


def check_plan(kind: str, *, basis: str, rule: str) -> None:
    """Refuse a plan that a rule cannot run on.

    Raises:
        PreconditionError: a tree adds up sums, and the rule is more than a sum.
    """
    if kind == "tree" and basis != "shares":
        raise PreconditionError(
            f"rule '{rule}' compares its rows with each other, and a tree of such rules would multiply their "
            f"tolerances (two levels of 1/3 tolerate 1/9); use plan 'sharded' or 'flat'"
        )


def cost_of(
    kind: Kind,
    *,
    num_rows: int,
    row_bytes: float,
    fan_in: int,
    links: Links,
    basis: str = "shares",
    vector_bytes: float | None = None,
    num_shards: int = 0,
) -> Cost:
    """What a plan costs: counts of what it does, each over a rate of ``links``.

    seconds = steps · latency + calls · call + objects · object + combined / combine rate + stored / store
    rate + link bytes / link rate.

    Assumes full-duplex links of equal speed, workers and reducers spread evenly over the nodes, a driver on a
    link of its own, a driver that sends the new weights to each node itself, once, and no overlap between the
    terms. On one node nothing crosses a link. With robust rules each row crosses once and is read twice.

    Args:
        kind: the plan.
        num_rows: n workers of the group.
        row_bytes: bytes of one row as it travels.
        fan_in: of a tree.
        links: the cluster.
        basis: of the rule; one that needs inner products reads its rows twice.
        vector_bytes: of a row once decoded, of a sum, and of the weights on their way back; ``None`` means
            as many as a row.
        num_shards: of the sharded plan; 0 takes one for each node, at least two.

    Example:
        >>> links = Links(nodes=64)
        >>> cost = cost_of("flat", num_rows=64, row_bytes=4e6, fan_in=8, links=links)
        >>> f"{cost.driver_bytes:.3g}", cost.steps
        ('5.12e+08', 3)
    """
    wide = row_bytes if vector_bytes is None else vector_bytes
    group = _Group(num_rows, row_bytes, wide, fan_in, num_shards or max(2, links.nodes), links)
    return {"flat": _flat, "tree": _tree, "sharded": _sharded}[kind](group, 2 if basis == "gram" else 1)


def choose_plan(
    *,
    num_rows: int,
    row_bytes: float,
    basis: str,
    fan_in: int,
    links: Links,
    kinds: tuple[Kind, ...] = (),
    vector_bytes: float | None = None,
    num_shards: int = 0,
) -> Kind:
    """The cheapest plan that the rule can run on.

    Example:
        >>> links = Links(nodes=64, bytes_per_s=1.25e9)
        >>> choose_plan(num_rows=64, row_bytes=45e6, basis="shares", fan_in=8, links=links)
        'sharded'
        >>> choose_plan(num_rows=4, row_bytes=4e3, basis="shares", fan_in=8, links=links)
        'flat'
    """
    able: tuple[Kind, ...] = ("flat", "tree", "sharded") if basis == "shares" else ("flat", "sharded")
    costs = {
        kind: cost_of(
            kind,
            num_rows=num_rows,
            row_bytes=row_bytes,
            fan_in=fan_in,
            links=links,
            basis=basis,
            vector_bytes=vector_bytes,
            num_shards=num_shards,
        ).seconds
        for kind in able
        if not kinds or kind in kinds
    }
    return min(costs, key=lambda kind: costs[kind])


@dataclass(frozen=True)
class _Group:
    """What the cost of a plan follows from; see ``cost_of``."""

    n: int
    row: float
    wide: float
    fan_in: int
    shards: int
    links: Links

    @property
    def away(self) -> float:
        """0 on a single machine, where nothing crosses a link."""
        return 0.0 if self.links.nodes == 1 else 1.0

    @property
    def reached(self) -> int:
        """Nodes that workers are on."""
        return min(self.n, self.links.nodes)

    @property
    def turns(self) -> int:
        """Workers that one core serves, one after the other, when the new weights arrive."""
        return math.ceil(math.ceil(self.n / self.links.nodes) / self.links.cores)

    def cost(
        self,
        *,
        steps: int,
        calls: int,
        objects: int,
        combined: float,
        stored: float,
        link: float,
        driver: float,
        busiest: float,
    ) -> Cost:
        links = self.links
        seconds = steps * links.latency_s + calls * links.call_s + objects * links.object_s
        seconds += combined / links.combine_bytes_per_s + stored / links.store_bytes_per_s
        seconds += link / links.bytes_per_s
        return Cost(seconds, steps, calls, objects, combined, stored, link, driver, max(busiest, driver))


def _flat(group: _Group, passes: int) -> Cost:
    n, out = group.n, group.reached * group.wide * group.away
    come = n * group.row * group.away
    return group.cost(
        steps=3,  # gather, put, hand out
        calls=n,
        objects=2 * n,
        combined=passes * n * group.wide,
        stored=(1 + group.turns) * group.wide,
        link=come + out,
        driver=come + out,
        busiest=come + out,
    )


def _tree(group: _Group, passes: int) -> Cost:
    n, wide, away, links = group.n, group.wide, group.away, group.links
    left, taken, calls, objects, depth = n, group.row, 0, n, 0
    combined = stored = link = most = 0.0
    while left > 1:
        width = min(group.fan_in, left)
        tasks = math.ceil(left / group.fan_in)
        on_core = math.ceil(tasks / (links.nodes * links.cores))
        on_node = math.ceil(tasks / links.nodes)
        combined += on_core * width * wide * passes
        stored += on_core * wide
        link += on_node * width * taken * away
        most = max(most, on_node * (width * taken + wide) * away)
        calls, objects, depth = calls + tasks, objects + left, depth + 1
        left, taken = tasks, wide
    driver = (1 + group.reached) * wide * away
    return group.cost(
        steps=depth + 3,
        calls=calls + n,
        objects=objects + 1,
        combined=combined,
        stored=stored + (2 + group.turns) * wide,
        link=link + driver,
        driver=driver,
        busiest=most,
    )


def _sharded(group: _Group, passes: int) -> Cost:
    n, shards, wide, links = group.n, group.shards, group.wide, group.links
    away = group.away
    on_core = math.ceil(shards / (links.nodes * links.cores))
    on_node = math.ceil(shards / links.nodes)
    per_node = math.ceil(n / links.nodes)
    come = on_node * n * group.row / shards * away  # rows' pieces that reach a node's reducers
    sent = per_node * group.row * away  # and those that leave its workers
    handed = on_node * min(group.reached, links.nodes) * wide / shards * away  # new pieces to all nodes
    fetched = wide * away  # all new pieces to each node, and to the driver
    return group.cost(
        steps=3 if passes == 1 else 5,
        calls=shards * passes + n,
        objects=n * shards * (passes + 1) + shards,
        combined=passes * on_core * n * wide / shards,
        stored=on_core * wide / shards + (1 + 2 * group.turns) * wide,
        link=max(come, sent) + max(handed, fetched),
        driver=fetched,
        busiest=come + sent + handed + fetched,
    )
