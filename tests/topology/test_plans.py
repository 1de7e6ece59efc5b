"""Plans: how rows are cut and added up, what a plan costs, and which is chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import PreconditionError
from hqde.topology import Links, check_plan, choose_plan, cost_of, shard_bounds, tree_blocks, tree_depth

FAN_INS = st.sampled_from([2, 4, 8, 16])
KINDS = st.sampled_from(["flat", "tree", "sharded"])


def cost(kind, num_rows, row_bytes, *, nodes, fan_in=8, **options):
    return cost_of(
        kind, num_rows=num_rows, row_bytes=row_bytes, fan_in=fan_in, links=Links(nodes=nodes), **options
    )


@given(
    size=st.integers(1, 10_000_000),
    num_shards=st.integers(1, 100),
    block=st.sampled_from([1, 2, 1 << 8, 1 << 14]),
)
def test_shards_cover_every_coordinate_once_and_are_cut_at_blocks(size, num_shards, block):
    bounds = shard_bounds(size, num_shards, block=block)
    assert len(bounds) <= num_shards
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(end == begin for (_, end), (begin, _) in pairwise(bounds))
    assert all(first < last for first, last in bounds)
    assert all(first % block == 0 for first, _ in bounds)
    assert len({last - first for first, last in bounds[:-1]}) <= 1


@given(num_rows=st.integers(1, 5_000), fan_in=FAN_INS)
def test_blocks_of_a_tree_hold_every_row_once_and_start_at_multiples_of_the_fan_in(num_rows, fan_in):
    blocks = tree_blocks(num_rows, fan_in)
    assert [row for first, last in blocks for row in range(first, last)] == list(range(num_rows))
    assert all(first % fan_in == 0 and last - first <= fan_in for first, last in blocks)


@given(num_rows=st.integers(1, 10**6), fan_in=FAN_INS)
def test_a_tree_is_as_deep_as_the_logarithm(num_rows, fan_in):
    depth = tree_depth(num_rows, fan_in)
    assert fan_in**depth >= num_rows
    assert depth == 0 or fan_in ** (depth - 1) < num_rows


@pytest.mark.parametrize(("num_rows", "depth"), [(4, 1), (8, 1), (9, 2), (64, 2), (65, 3), (1000, 4)])
def test_depths_by_hand(num_rows, depth):
    assert tree_depth(num_rows, 8) == depth


@given(
    kind=KINDS,
    num_rows=st.integers(2, 2_000),
    row_bytes=st.integers(4, 10**8),
    nodes=st.sampled_from([1, 4, 50]),
    basis=st.sampled_from(["shares", "gram"]),
)
def test_more_workers_and_more_coordinates_never_cost_less(kind, num_rows, row_bytes, nodes, basis):
    here = cost(kind, num_rows, row_bytes, nodes=nodes, basis=basis)
    for more in (
        cost(kind, num_rows + 1, row_bytes, nodes=nodes, basis=basis),
        cost(kind, num_rows, 2 * row_bytes, nodes=nodes, basis=basis),
    ):
        assert more.seconds >= here.seconds * (1 - 1e-9)
        assert more.busiest_bytes >= here.busiest_bytes


@given(kind=KINDS, nodes=st.sampled_from([1, 4]))
def test_seconds_are_counts_over_rates(kind, nodes):
    rates = Links(nodes=nodes)
    found = cost(kind, 16, 4e6, nodes=nodes)
    assert found.seconds == pytest.approx(
        found.steps * rates.latency_s
        + found.calls * rates.call_s
        + found.objects * rates.object_s
        + found.combined_bytes / rates.combine_bytes_per_s
        + found.stored_bytes / rates.store_bytes_per_s
        + found.link_bytes / rates.bytes_per_s
    )


@pytest.mark.parametrize("kind", ["flat", "tree", "sharded"])
def test_on_one_machine_nothing_crosses_a_link(kind):
    found = cost(kind, 16, 4e6, nodes=1)
    assert (found.link_bytes, found.driver_bytes, found.busiest_bytes) == (0, 0, 0)


def test_flat_takes_every_row_through_the_driver():
    for num_rows in (4, 64, 1024):
        found = cost("flat", num_rows, 1e6, nodes=num_rows)
        assert found.busiest_bytes == found.driver_bytes == 2 * num_rows * 1e6  # rows in, weights out


def test_sharded_takes_the_same_through_every_link_when_nodes_grow_with_workers():
    found = [cost("sharded", n, 1e6, nodes=n).busiest_bytes / 1e6 for n in (4, 64, 1024, 10_000)]
    assert found == pytest.approx([4.0] * 4)  # its row out, pieces in, its shard to all, all shards in
    assert cost("sharded", 10_000, 1e6, nodes=10_000).driver_bytes == 1e6


@given(num_rows=st.integers(2, 10_000), fan_in=FAN_INS)
def test_a_tree_gathers_no_more_than_its_fan_in(num_rows, fan_in):
    """Through any machine but the driver's, which hands out the new weights."""
    found = cost("tree", num_rows, 1e6, nodes=num_rows, fan_in=fan_in)
    assert found.combined_bytes <= fan_in * 1e6 * tree_depth(num_rows, fan_in)
    assert found.busiest_bytes <= max(found.driver_bytes, (fan_in + 1) * 1e6)
    assert found.steps == tree_depth(num_rows, fan_in) + 3


def test_a_rule_that_needs_inner_products_reads_its_rows_twice():
    for kind in ("flat", "sharded"):
        once, twice = (cost(kind, 16, 4e6, nodes=4, basis=basis) for basis in ("shares", "gram"))
        assert twice.combined_bytes == 2 * once.combined_bytes
        assert twice.link_bytes == once.link_bytes


def test_fewer_bits_make_rows_smaller_and_nothing_else():
    wide = cost("flat", 16, 4e6, nodes=16)
    narrow = cost("flat", 16, 1e6, nodes=16, vector_bytes=4e6)
    assert wide.link_bytes - narrow.link_bytes == 16 * 3e6
    assert replace(narrow, seconds=0, link_bytes=0, driver_bytes=0, busiest_bytes=0) == replace(
        wide, seconds=0, link_bytes=0, driver_bytes=0, busiest_bytes=0
    )


@pytest.mark.parametrize("basis", ["gram", "columns"])
def test_a_tree_is_refused_for_rules_that_compare_rows(basis):
    with pytest.raises(PreconditionError, match="'krum' compares its rows"):
        check_plan("tree", basis=basis, rule="krum")
    for kind in ("flat", "sharded", "auto"):
        check_plan(kind, basis=basis, rule="krum")
    check_plan("tree", basis="shares", rule="mean")


@given(
    num_rows=st.integers(2, 5_000),
    row_bytes=st.floats(1e3, 1e9),
    nodes=st.integers(1, 200),
    bytes_per_s=st.sampled_from([1.25e7, 1.25e9]),
    basis=st.sampled_from(["shares", "gram", "columns"]),
)
def test_the_cheapest_plan_that_the_rule_can_run_on_is_chosen(num_rows, row_bytes, nodes, bytes_per_s, basis):
    links = Links(nodes=nodes, bytes_per_s=bytes_per_s)
    given_ = {"num_rows": num_rows, "row_bytes": row_bytes, "fan_in": 8, "links": links, "basis": basis}
    able = ("flat", "tree", "sharded") if basis == "shares" else ("flat", "sharded")
    chosen = choose_plan(**given_)
    assert chosen in able
    assert cost_of(chosen, **given_).seconds == min(cost_of(kind, **given_).seconds for kind in able)


def test_what_may_be_chosen_can_be_narrowed():
    links = Links(nodes=16)
    chosen = choose_plan(
        num_rows=16, row_bytes=4e7, basis="shares", fan_in=8, links=links, kinds=("flat", "tree")
    )
    assert chosen in ("flat", "tree")


def test_small_weights_stay_flat_and_large_ones_on_many_machines_are_sharded():
    for basis in ("shares", "gram"):
        few = {"basis": basis, "fan_in": 8}
        assert choose_plan(num_rows=4, row_bytes=4e3, links=Links(nodes=4), **few) == "flat"
        slow = Links(nodes=16, bytes_per_s=1.25e7)
        assert choose_plan(num_rows=16, row_bytes=4e7, links=slow, **few) == "sharded"
    assert math.isfinite(cost("sharded", 10_000, 4e7, nodes=10_000).seconds)
