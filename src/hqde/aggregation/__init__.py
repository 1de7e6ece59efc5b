"""From updates to new weights: admission, rules, server optimizers."""

from hqde.aggregation.admission import Rejection, admit
from hqde.aggregation.combination import Combination, Combined, combine, step_columns
from hqde.aggregation.gram import BLOCK, GramParts, gram_matrix, gram_parts, merge_parts
from hqde.aggregation.rule import Aggregate, Basis, Decision, Mean, Rule, check_rows, check_shares, shares_of
from hqde.aggregation.server import (
    SERVER_OPTIMIZERS,
    Adaptive,
    FedAvg,
    Momentum,
    ServerOptimizer,
    ServerState,
    make_server_optimizer,
)
from hqde.aggregation.summation import add_pairwise, weighted_sum
from hqde.aggregation.update import Delta, RemoteDelta, Update, count_nonfinite

__all__ = [
    "BLOCK",
    "SERVER_OPTIMIZERS",
    "Adaptive",
    "Aggregate",
    "Basis",
    "Combination",
    "Combined",
    "Decision",
    "Delta",
    "FedAvg",
    "GramParts",
    "Mean",
    "Momentum",
    "Rejection",
    "RemoteDelta",
    "Rule",
    "ServerOptimizer",
    "ServerState",
    "Update",
    "add_pairwise",
    "admit",
    "check_rows",
    "check_shares",
    "combine",
    "count_nonfinite",
    "gram_matrix",
    "gram_parts",
    "make_server_optimizer",
    "merge_parts",
    "shares_of",
    "step_columns",
    "weighted_sum",
]
