"""Groups over rounds: the dial between one strong model and many diverse ones."""

from hqde.topology.rounds import RoundPlan, Scope, branch_epoch, plan_rounds
from hqde.topology.topology import Groups, Topology

__all__ = ["Groups", "RoundPlan", "Scope", "Topology", "branch_epoch", "plan_rounds"]
