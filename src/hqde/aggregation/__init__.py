"""From updates to one delta: admission, rules."""

from hqde.aggregation.admission import Rejection, admit
from hqde.aggregation.rule import Aggregate, Mean, Rule, check_rows
from hqde.aggregation.update import Update

__all__ = ["Aggregate", "Mean", "Rejection", "Rule", "Update", "admit", "check_rows"]
