"""From updates to new weights: admission, rules, server optimizers."""

from hqde.aggregation.admission import Rejection, admit
from hqde.aggregation.centered_clipping import CenteredClipping
from hqde.aggregation.clipping import AdaptiveRobustClipping, Clipping
from hqde.aggregation.combination import Combination, Combined, combine, step_columns
from hqde.aggregation.coordinate import CoordinateMedian, MeanAroundMedian, TrimmedMean
from hqde.aggregation.geometric_median import GeometricMedian
from hqde.aggregation.gram import BLOCK, GramParts, gram_matrix, gram_parts, merge_parts
from hqde.aggregation.krum import Bulyan, Krum, MultiKrum
from hqde.aggregation.mixing import Bucketing, Composed, Mixing, NearestNeighbourMixing
from hqde.aggregation.registry import MIXINGS, RULES, make_rule
from hqde.aggregation.rule import Aggregate, Decision, Mean, Rule, check_rows, num_byzantine_of, shares_of
from hqde.aggregation.selection import Caf, MinimumDiameterAveraging, Monna
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
    "MIXINGS",
    "RULES",
    "SERVER_OPTIMIZERS",
    "Adaptive",
    "AdaptiveRobustClipping",
    "Aggregate",
    "Bucketing",
    "Bulyan",
    "Caf",
    "CenteredClipping",
    "Clipping",
    "Combination",
    "Combined",
    "Composed",
    "CoordinateMedian",
    "Decision",
    "Delta",
    "FedAvg",
    "GeometricMedian",
    "GramParts",
    "Krum",
    "Mean",
    "MeanAroundMedian",
    "MinimumDiameterAveraging",
    "Mixing",
    "Momentum",
    "Monna",
    "MultiKrum",
    "NearestNeighbourMixing",
    "Rejection",
    "RemoteDelta",
    "Rule",
    "ServerOptimizer",
    "ServerState",
    "TrimmedMean",
    "Update",
    "add_pairwise",
    "admit",
    "check_rows",
    "combine",
    "count_nonfinite",
    "gram_matrix",
    "gram_parts",
    "make_rule",
    "make_server_optimizer",
    "merge_parts",
    "num_byzantine_of",
    "shares_of",
    "step_columns",
    "weighted_sum",
]
