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
    """What a cluster is made of, for the cost model.

    Attributes:
        nodes: machines; workers and tasks are spread evenly over them.
        bytes_per_s: of each machine's link, in each direction.
        latency_s: to start a task or to ask for an object.
        combine_bytes_per_s: bytes of rows that one machine adds up.
        store_bytes_per_s: bytes that one machine writes to or reads from its object store.
    """

    nodes: int
    bytes_per_s: float = 1.25e9
    latency_s: float = 2e-3
    combine_bytes_per_s: float = 4e9
    store_bytes_per_s: float = 2e9


@dataclass(frozen=True)
class Cost:
    """What one synchronisation of one group costs.

    Attributes:
        seconds: from the last update to the new weights at every worker.
        driver_bytes: through the driver's link, both directions.
        busiest_bytes: through the busiest machine's link, both directions, the driver's included.
        depth: steps that wait for each other.
    """

    seconds: float
    driver_bytes: float
    busiest_bytes: float
    depth: int


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
    kind: Kind, *, num_rows: int, row_bytes: float, fan_in: int, links: Links, basis: str = "shares"
) -> Cost:
    """What a plan costs, by a model whose terms are transfers, additions and task starts.

    Assumes full-duplex links of equal speed, rows spread evenly over the nodes, a driver on a node of its own
    link, and weights that every node fetches once however many workers it has.

    Args:
        kind: the plan.
        num_rows: n workers of the group.
        row_bytes: bytes of one row as it travels.
        fan_in: of a tree.
        links: the cluster.
        basis: of the rule; one that needs inner products reads its rows twice.
    """
    n, d, nodes = num_rows, row_bytes, links.nodes
    away = 0.0 if nodes == 1 else 1.0  # on a single machine nothing crosses a link
    per_node = math.ceil(n / nodes)
    passes = 2 if basis == "gram" else 1
    write_s = per_node * d / links.store_bytes_per_s
    if kind == "flat":
        driver_in, driver_out = n * d * away, min(n, nodes) * d * away
        seconds = driver_in / links.bytes_per_s + passes * n * d / links.combine_bytes_per_s
        seconds += driver_out / links.bytes_per_s + n * links.latency_s
        return Cost(seconds + write_s, driver_in + driver_out, driver_in + driver_out, 1)
    if kind == "tree":
        depth = tree_depth(n, fan_in)
        level_s = fan_in * d * (away / links.bytes_per_s + 1 / links.combine_bytes_per_s) + links.latency_s
        driver = (d + min(n, nodes) * d) * away
        tasks_per_node = math.ceil(math.ceil(n / fan_in) / nodes)
        busiest = max(driver, (fan_in + 1) * d * away * tasks_per_node)
        seconds = depth * level_s * tasks_per_node + driver / links.bytes_per_s + n * links.latency_s
        return Cost(seconds + write_s, driver, busiest, depth + 1)
    # sharded: each node combines 1/nodes of the columns of all rows, then hands its shard to all other nodes
    gathered = n * d / nodes * away
    handed = (nodes - 1) * d / nodes * away
    driver = d * away
    busiest = gathered + per_node * d * (nodes - 1) / nodes * away + handed + driver
    seconds = max(gathered, per_node * d * (nodes - 1) / nodes * away) / links.bytes_per_s
    seconds += passes * n * d / nodes / links.combine_bytes_per_s
    seconds += max(handed, driver) / links.bytes_per_s + (n * nodes * passes) * links.latency_s / 4
    return Cost(seconds + write_s, driver, busiest, 2 if basis == "gram" else 1)


def choose_plan(
    *, num_rows: int, row_bytes: float, basis: str, fan_in: int, links: Links, kinds: tuple[Kind, ...] = ()
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
            kind, num_rows=num_rows, row_bytes=row_bytes, fan_in=fan_in, links=links, basis=basis
        ).seconds
        for kind in able
        if not kinds or kind in kinds
    }
    return min(costs, key=lambda kind: costs[kind])
