"""Replica annealing as a plan: pulls over the run, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.topology import Elastic, Topology, plan_rounds

PULLS = st.floats(0.0, 1.0)


@given(start=PULLS, end=PULLS, shape=st.sampled_from(["linear", "cosine"]), at=PULLS)
def test_pulls_go_from_start_to_end_without_leaving_the_range(start, end, shape, at):
    elastic = Elastic(group_pull=start, group_pull_end=end, shape=shape)
    assert elastic.group_pull_at(0.0) == start
    assert elastic.group_pull_at(1.0) == pytest.approx(end, abs=1e-12)
    assert min(start, end) - 1e-12 <= elastic.group_pull_at(at) <= max(start, end) + 1e-12


def test_a_cosine_is_half_way_in_the_middle_and_slow_at_the_ends():
    elastic = Elastic(global_pull=0.0, global_pull_end=1.0, shape="cosine")
    assert elastic.global_pull_at(0.5) == pytest.approx(0.5)
    assert elastic.global_pull_at(0.1) == pytest.approx(0.5 * (1 - math.cos(0.1 * math.pi)))


def test_without_pulls_of_its_own_a_topology_is_what_it_was():
    for topology in (Topology(groups=2), Topology(groups=2, global_every=1)):
        assert not topology.elastic.keeps_replicas
        assert all(p.group_pull is None for p in plan_rounds(topology, 4, epochs=3, batches_per_epoch=2))
    assert Topology(global_every=1).mixes_groups
    assert not Topology().mixes_groups
    assert Topology(elastic=Elastic(global_pull_end=0.1)).mixes_groups


def test_workers_are_pulled_when_a_round_begins_and_groups_when_it_ends():
    elastic = Elastic(group_pull=0.0, group_pull_end=1.0, global_pull=0.0, global_pull_end=0.8)
    plans = plan_rounds(Topology(groups=2, elastic=elastic), 4, epochs=4, batches_per_epoch=5)
    assert [p.group_pull for p in plans] == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert [p.global_pull for p in plans] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [p.scope for p in plans] == ["global"] * 4


def test_a_pull_that_has_come_down_to_nothing_averages_nobody():
    plans = plan_rounds(
        Topology(elastic=Elastic(global_pull=1.0, global_pull_end=0.0)), 3, epochs=2, batches_per_epoch=5
    )
    assert [(p.scope, p.global_pull) for p in plans] == [("global", 0.5), ("none", 1.0)]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Elastic(group_pull=1.5), r"group_pull lies between 0 .* and 1 .*, got 1.5; a coupling k is"),
        (lambda: Elastic(global_pull_end=-0.1), "global_pull_end lies between 0 .* got -0.1"),
        (lambda: Elastic(group_pull=math.nan), "group_pull lies between 0 .* got nan"),
        (lambda: Elastic(shape="steep"), "must be 'linear' or 'cosine', got 'steep'"),
        (
            lambda: Topology(branch_at=0.5, elastic=Elastic(group_pull=0.5)),
            "branch_at=0.5 parts all workers at once, .*use one of the two",
        ),
        (
            lambda: Topology(global_every=2, elastic=Elastic(global_pull=0.5)),
            "global_every=2 averages groups .*use one of the two",
        ),
        (
            lambda: Topology(groups=1, elastic=Elastic(global_pull=0.5)),
            "draws groups to each other and there is 1 group; use more groups",
        ),
        (
            lambda: Topology(groups=3, elastic=Elastic(group_pull=0.5)).groups_of(3),
            "group_pull=0.5 draws workers .* with 3 groups of 3 workers each is alone",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()
