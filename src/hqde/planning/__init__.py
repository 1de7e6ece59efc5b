"""Where and how a run is quickest on this machine, found out by a few steps of it."""

from hqde.planning.cache import PlanCache
from hqde.planning.candidates import Candidate, candidates_for
from hqde.planning.plan import RunPlanner, SpeedPlan
from hqde.planning.probing import Probe, probe
from hqde.planning.profile import StepProfile, describe_profile, profile_steps, run_seconds

__all__ = [
    "Candidate",
    "PlanCache",
    "Probe",
    "RunPlanner",
    "SpeedPlan",
    "StepProfile",
    "candidates_for",
    "describe_profile",
    "probe",
    "profile_steps",
    "run_seconds",
]
