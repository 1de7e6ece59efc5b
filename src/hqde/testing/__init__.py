"""For tests of HQDE and of what others add to it: conformance suites, faults on order."""

from hqde.testing.backend_checks import BACKEND_CHECKS, orders_of, small_experiment
from hqde.testing.faults import Fault, FaultyBackend
from hqde.testing.rule_checks import RULE_CHECKS

__all__ = ["BACKEND_CHECKS", "RULE_CHECKS", "Fault", "FaultyBackend", "orders_of", "small_experiment"]
