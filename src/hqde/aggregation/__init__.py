"""From updates to new weights: admission, rules, server optimizers."""

from hqde.aggregation.admission import Rejection, admit
from hqde.aggregation.attacks import (
    Attack,
    ConstantRow,
    GaussianNoise,
    NonFinite,
    Replay,
    ScaledUpdate,
    SignFlip,
    ZeroRow,
    flip_labels,
)
from hqde.aggregation.attacks_crafted import (
    ALittleIsEnough,
    InnerProductManipulation,
    Mimic,
    MinMax,
    MinSum,
)
from hqde.aggregation.attacks_optimal import ATTACKS, OptimalAttack, make_attack, optimal
from hqde.aggregation.centered_clipping import CenteredClipping
from hqde.aggregation.clipping import AdaptiveRobustClipping, Clipping
from hqde.aggregation.combination import Combination, Combined, combine, step_columns
from hqde.aggregation.coordinate import CoordinateMedian, MeanAroundMedian, TrimmedMean
from hqde.aggregation.coupling import pulled
from hqde.aggregation.geometric_median import GeometricMedian
from hqde.aggregation.gram import BLOCK, GramParts, gram_matrix, gram_parts, merge_parts
from hqde.aggregation.krum import Bulyan, Krum, MultiKrum
from hqde.aggregation.learnt_shares import LearntShares
from hqde.aggregation.mixing import Bucketing, Composed, Mixing, MixingChain, NearestNeighbourMixing
from hqde.aggregation.outliers import OutlierScores, agreement, outlier_scores
from hqde.aggregation.policy import AggregationPolicy, Breach
from hqde.aggregation.privacy import FixedWeights, GaussianMechanism
from hqde.aggregation.registry import MIXINGS, RULES, FractionalRule, make_rule, rule_of
from hqde.aggregation.reliability import Reliability, ReliabilityState
from hqde.aggregation.remembering import Remembering, Use
from hqde.aggregation.rule import (
    Aggregate,
    Basis,
    Decision,
    Mean,
    Rule,
    check_rows,
    check_shares,
    num_byzantine_of,
    shares_of,
)
from hqde.aggregation.screening import HeldOutImprovement, NormBound, NormState
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
from hqde.aggregation.streaming import aggregate_stream
from hqde.aggregation.summation import add_pairwise, weighted_sum
from hqde.aggregation.update import Delta, RemoteDelta, Update, count_nonfinite, norm_of

__all__ = [
    "ATTACKS",
    "BLOCK",
    "MIXINGS",
    "RULES",
    "SERVER_OPTIMIZERS",
    "ALittleIsEnough",
    "Adaptive",
    "AdaptiveRobustClipping",
    "Aggregate",
    "AggregationPolicy",
    "Attack",
    "Basis",
    "Breach",
    "Bucketing",
    "Bulyan",
    "Caf",
    "CenteredClipping",
    "Clipping",
    "Combination",
    "Combined",
    "Composed",
    "ConstantRow",
    "CoordinateMedian",
    "Decision",
    "Delta",
    "FedAvg",
    "FixedWeights",
    "FractionalRule",
    "GaussianMechanism",
    "GaussianNoise",
    "GeometricMedian",
    "GramParts",
    "HeldOutImprovement",
    "InnerProductManipulation",
    "Krum",
    "LearntShares",
    "Mean",
    "MeanAroundMedian",
    "Mimic",
    "MinMax",
    "MinSum",
    "MinimumDiameterAveraging",
    "Mixing",
    "MixingChain",
    "Momentum",
    "Monna",
    "MultiKrum",
    "NearestNeighbourMixing",
    "NonFinite",
    "NormBound",
    "NormState",
    "OptimalAttack",
    "OutlierScores",
    "Rejection",
    "Reliability",
    "ReliabilityState",
    "Remembering",
    "RemoteDelta",
    "Replay",
    "Rule",
    "ScaledUpdate",
    "ServerOptimizer",
    "ServerState",
    "SignFlip",
    "TrimmedMean",
    "Update",
    "Use",
    "ZeroRow",
    "add_pairwise",
    "admit",
    "aggregate_stream",
    "agreement",
    "check_rows",
    "check_shares",
    "combine",
    "count_nonfinite",
    "flip_labels",
    "gram_matrix",
    "gram_parts",
    "make_attack",
    "make_rule",
    "make_server_optimizer",
    "merge_parts",
    "norm_of",
    "num_byzantine_of",
    "optimal",
    "outlier_scores",
    "pulled",
    "rule_of",
    "shares_of",
    "step_columns",
    "weighted_sum",
]
