"""Every rule keeps what every rule promises, alone and behind pre-aggregators; a new rule is one line."""

from __future__ import annotations

import pytest

from hqde.aggregation import (
    RULES,
    AdaptiveRobustClipping,
    Bucketing,
    Bulyan,
    Caf,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    Monna,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
)
from hqde.testing import RULE_CHECKS

MAKERS = {
    "mean": lambda f: Mean(),
    "coordinate_median": CoordinateMedian,
    "trimmed_mean": TrimmedMean,
    "mean_around_median": MeanAroundMedian,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "multi_krum of 3": lambda f: MultiKrum(f, num_selected=3),
    "bulyan": Bulyan,
    "mda": MinimumDiameterAveraging,
    "centered_clipping": CenteredClipping,
    "monna": Monna,
    "caf": Caf,
    "nnm, geometric_median": lambda f: NearestNeighbourMixing(f) >> GeometricMedian(f),
    "nnm, trimmed_mean": lambda f: NearestNeighbourMixing(f) >> TrimmedMean(f),
    "nnm, krum": lambda f: NearestNeighbourMixing(f) >> Krum(f),
    "nnm, bulyan": lambda f: NearestNeighbourMixing(f) >> Bulyan(f),
    "arc, nnm, coordinate_median": lambda f: (
        AdaptiveRobustClipping(f) >> NearestNeighbourMixing(f) >> CoordinateMedian(f)
    ),
    "bucketing, coordinate_median": lambda f: Bucketing(2) >> CoordinateMedian(f),
    "bucketing, multi_krum": lambda f: Bucketing(2) >> MultiKrum(f),
}
# What a check cannot ask of a rule, and why.
EXEMPT = {
    ("rows_may_be_permuted", "monna"): "the pivot is a position",
    ("rows_may_be_permuted", "bucketing, coordinate_median"): "buckets are drawn by position",
    ("rows_may_be_permuted", "bucketing, multi_krum"): "buckets are drawn by position",
    ("any_floating_dtype_will_do", "krum"): "rounding may turn to another row",
    ("any_floating_dtype_will_do", "nnm, krum"): "rounding may turn to another row",
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("check", RULE_CHECKS, ids=lambda check: check.__name__)
def test_a_rule_keeps_the_common_promises(check, name):
    if (check.__name__, name) in EXEMPT:
        pytest.skip(EXEMPT[check.__name__, name])
    check(MAKERS[name])


def test_every_rule_is_in_the_list():
    assert set(RULES) <= set(MAKERS)
    assert all(RULES[name] is type(MAKERS[name](1)) for name in RULES)
