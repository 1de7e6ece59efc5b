"""Every rule keeps what every rule promises, alone and behind pre-aggregators; a new rule is one line."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from hqde import aggregation
from hqde.aggregation import (
    RULES,
    AdaptiveRobustClipping,
    Bucketing,
    Bulyan,
    Caf,
    CenteredClipping,
    Clipping,
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
    make_rule,
    num_byzantine_of,
)
from hqde.errors import ConfigError, PreconditionError
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


@pytest.mark.parametrize("rule", [Mean(), GeometricMedian(), CenteredClipping()], ids=lambda rule: rule.name)
def test_a_row_with_two_shares_counts_as_two_rows(rule):
    rows = torch.randn(5, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = torch.tensor([2, 1, 1, 1, 1]) / 6
    twice = torch.cat([rows[:1], rows])
    one, other = rule(rows, shares).value, rule(twice, torch.full((6,), 1 / 6)).value
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [GeometricMedian(2), CenteredClipping(2)], ids=lambda rule: rule.name)
def test_two_workers_with_half_of_the_shares_are_too_many(rule):
    shares = torch.tensor([4, 3, 1, 1, 1, 1, 1]) / 12
    with pytest.raises(
        PreconditionError, match=r"but the 2 largest of 7 sum to 0\.583\. Use num_byzantine=1"
    ):
        rule(torch.eye(7), shares)


def test_rules_by_name():
    assert make_rule("mean") == Mean()
    assert make_rule("krum", num_byzantine=2) == Krum(2)
    assert make_rule("trimmed_mean", num_byzantine=1, mixing=["arc", Clipping(2.0), "nnm"]) == (
        AdaptiveRobustClipping(1) >> (Clipping(2.0) >> (NearestNeighbourMixing(1) >> TrimmedMean(1)))
    )
    for make in MAKERS.values():
        assert eval(repr(make(2)), vars(aggregation)) == make(2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: make_rule("krumm"), "unknown rule 'krumm'; did you mean 'krum'"),
        (lambda: make_rule("krum", num_bizantine=1), "'krum' has no setting 'num_bizantine'; did you mean"),
        (lambda: make_rule("mean", radius=1), "'mean' has no setting 'radius'; it takes none"),
        (lambda: make_rule("mean", num_byzantine=1), "'mean' bears no bad worker, but num_byzantine is 1"),
        (lambda: make_rule("mean", mixing=["nmn"]), "unknown pre-aggregator 'nmn'; did you mean 'nnm'"),
        (lambda: make_rule("mean", mixing=["clipping"]), "'clipping' needs max_norm: give it as an object"),
        (lambda: Krum(-1), "num_byzantine of 'krum' must be a whole number from 0 on, got -1"),
        (lambda: TrimmedMean(0.3), "got 0.3; for a fraction of the workers take num_byzantine_of"),
        (lambda: NearestNeighbourMixing(True), "num_byzantine of 'nnm' must be a whole number"),
        (lambda: GeometricMedian(tolerance=0.0), "a tolerance in"),
        (lambda: CenteredClipping(radius=0.0), "radius of 'centered_clipping' must be above 0"),
        (lambda: CenteredClipping(num_iterations=0), "num_iterations >= 1"),
        (lambda: MultiKrum(1, num_selected=0), "num_selected of 'multi_krum' must be at least 1"),
        (lambda: Monna(1, pivot=-1), "pivot of 'monna'"),
        (lambda: Bucketing(0), "bucket_size must be at least 1"),
        (lambda: Clipping(float("nan")), "max_norm of 'clipping' must be above 0"),
        (lambda: num_byzantine_of(5, 1.5), r"lies in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_the_sentence_about_too_few_rows_has_the_numbers_and_a_cure_that_works():
    shares = torch.full((5,), 1 / 5)
    with pytest.raises(
        PreconditionError, match=r"krum needs n >= 2f \+ 3: n=5, f=2\. Use num_byzantine=1 or 7 w"
    ):
        Krum(2)(torch.eye(5), shares)
    Krum(1)(torch.eye(5), shares)
    Krum(2)(torch.eye(7), torch.full((7,), 1 / 7))


def test_a_round_of_its_own_only_concerns_chance():
    rule = Bucketing(2, seed=3) >> CoordinateMedian(1)
    assert rule.for_round(1) != rule.for_round(2)
    assert rule.for_round(1) == rule.for_round(1)
    assert Krum(1).for_round(5) == Krum(1)


def test_what_is_refused_beforehand_counts_against_f():
    rule = NearestNeighbourMixing(3) >> TrimmedMean(3)
    assert rule.after_rejecting(2) == NearestNeighbourMixing(1) >> TrimmedMean(1)
    assert rule.after_rejecting(9) == NearestNeighbourMixing(0) >> TrimmedMean(0)


@pytest.mark.parametrize("name", ["mean", "coordinate_median", "trimmed_mean", "mean_around_median"])
def test_the_number_of_threads_does_not_change_a_bit(name):
    rows = torch.randn(9, 9 * aggregation.BLOCK + 5, generator=torch.Generator().manual_seed(0))
    shares, before, threads = torch.full((9,), 1 / 9), torch.get_num_threads(), set(threading.enumerate())
    values = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            values.append(MAKERS[name](2)(rows, shares).value)
            rows[3, -1] = math.nan
            assert torch.isfinite(MAKERS[name](2)(rows, shares).value).all()
            rows[3, -1] = 0.0
            values.append(MAKERS[name](2)(rows, shares).value)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(values[1], values[2])
    assert torch.equal(values[2], values[3])
    stay = [thread.name for thread in set(threading.enumerate()) - threads]
    assert len(stay) <= 2
    assert all(name.startswith("columns") for name in stay)


def test_an_iteration_that_did_not_suffice_is_reported():
    rows = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    shares = torch.full((9,), 1 / 9)
    hasty = GeometricMedian(max_iterations=1)(rows, shares).decision
    patient = GeometricMedian()(rows, shares).decision
    assert (hasty.iterations, hasty.converged) == (1, False)
    assert patient.iterations > 1
    assert patient.converged
