"""Groups: contiguous, of equal size, every worker in exactly one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.topology import Elastic, Topology


@given(groups=st.integers(1, 12), size=st.integers(1, 6))
def test_every_worker_stands_in_exactly_one_group_of_equal_size(groups, size):
    found = Topology(groups=groups).groups_of(groups * size)
    assert len(found) == groups
    assert {len(group) for group in found} == {size}
    assert [worker for group in found for worker in group] == list(range(groups * size))


@given(num_workers=st.integers(1, 30))
def test_the_two_ends_of_the_dial(num_workers):
    assert Topology.independent().groups_of(num_workers) == tuple((w,) for w in range(num_workers))
    assert Topology.fedavg().groups_of(num_workers) == (tuple(range(num_workers)),)
    assert Topology.independent().num_groups(num_workers) == num_workers
    assert Topology.fedavg().num_groups(num_workers) == 1


@given(groups=st.integers(1, 20), num_workers=st.integers(1, 20))
def test_groups_that_do_not_divide_the_workers_are_refused(groups, num_workers):
    topology = Topology(groups=groups)
    if num_workers % groups == 0:
        assert topology.num_groups(num_workers) == groups
        return
    with pytest.raises(ConfigError, match=f"{groups} groups do not divide {num_workers} workers"):
        topology.num_groups(num_workers)


def test_the_refusal_names_the_numbers_that_would_do():
    sentence = r"4 groups do not divide 6 workers evenly; use one of \[1, 2, 3, 6\] groups or a multiple of 4"
    with pytest.raises(ConfigError, match=sentence):
        Topology(groups=4).groups_of(6)


def test_the_trunk_holds_all_workers_or_as_many_as_are_named():
    assert Topology(groups=2).num_trunk_workers(6) == 6
    assert Topology(groups=2, branch_at=0.5).num_trunk_workers(6) == 6
    assert Topology(groups=2, branch_at=0.5, trunk_workers=6).num_trunk_workers(6) == 6
    assert Topology(groups=2, branch_at=0.5, trunk_workers=1).num_trunk_workers(6) == 1
    with pytest.raises(ConfigError, match="trunk_workers=7 is more than the 6 workers"):
        Topology(groups=2, branch_at=0.5, trunk_workers=7).num_trunk_workers(6)


@pytest.mark.parametrize("num_workers", [0, -1])
def test_a_run_without_workers_is_refused(num_workers):
    with pytest.raises(ConfigError, match=f"at least 1 worker, got {num_workers}"):
        Topology().num_groups(num_workers)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"groups": -2}, "groups must be at least 1, got -2"),
        ({"branch_at": 0.0}, "branch_at is a fraction between 0 and 1"),
        ({"branch_at": 1.0}, "branch_at is a fraction between 0 and 1"),
        ({"branch_at": math.nan}, "branch_at is a fraction between 0 and 1"),
        ({"groups": 1, "branch_at": 0.5}, "branch_at=0.5 needs at least 2 groups to part into, got 1"),
        ({"trunk_workers": 1}, "trunk_workers=1 must be at least 1 and goes with branch_at"),
        ({"branch_at": 0.5, "trunk_workers": 0}, "trunk_workers=0 must be at least 1"),
        ({"global_every": -1}, "global_every must be 0"),
        ({"global_until": 0.0}, "global_until must lie between 0 and 1"),
        ({"global_until": 1.0}, "global_until must lie between 0 and 1"),
        ({"global_until": math.nan}, "global_until must lie between 0 and 1"),
        ({"every": 0}, "every must be 'epoch' or a number of steps of at least 1, got 0"),
        ({"every": "step"}, "every must be 'epoch' or a number of steps of at least 1, got 'step'"),
        ({"every": 2.0}, "every must be 'epoch' or a number of steps of at least 1, got 2.0"),
        ({"every": True}, "every must be 'epoch' or a number of steps of at least 1, got True"),
    ],
)
def test_values_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Topology(**settings)


def test_the_repr_rebuilds_the_topology():
    topology = Topology(groups=2, branch_at=0.25, trunk_workers=1, global_every=3, global_until=0.5, every=7)
    assert eval(repr(topology)) == topology
    elastic = Topology(groups=2, elastic=Elastic(group_pull=0.25))
    assert eval(repr(elastic)) == elastic
