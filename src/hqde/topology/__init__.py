"""Who is averaged with whom, round by round, and how the averaging is spread over machines."""

from hqde.topology.elastic import Elastic
from hqde.topology.plans import (
    Cost,
    Links,
    Plan,
    check_plan,
    choose_plan,
    cost_of,
    shard_bounds,
    tree_blocks,
    tree_depth,
)
from hqde.topology.rounds import RoundPlan, Scope, branch_epoch, plan_rounds
from hqde.topology.topology import Groups, Topology

__all__ = [
    "Cost",
    "Elastic",
    "Groups",
    "Links",
    "Plan",
    "RoundPlan",
    "Scope",
    "Topology",
    "branch_epoch",
    "check_plan",
    "choose_plan",
    "cost_of",
    "plan_rounds",
    "shard_bounds",
    "tree_blocks",
    "tree_depth",
]
