"""(f, κ)-robustness: no attack moves a rule farther from the honest mean than its published κ allows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.aggregation import (
    ATTACKS,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    NearestNeighbourMixing,
    NonFinite,
    Replay,
    SignFlip,
    TrimmedMean,
    make_attack,
    make_rule,
    optimal,
)

PUBLISHED = {
    "coordinate_median": CoordinateMedian,
    "trimmed_mean": TrimmedMean,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "nnm, coordinate_median": lambda f: NearestNeighbourMixing(f) >> CoordinateMedian(f),
    "nnm, trimmed_mean": lambda f: NearestNeighbourMixing(f) >> TrimmedMean(f),
    "nnm, geometric_median": lambda f: NearestNeighbourMixing(f) >> GeometricMedian(f),
    "nnm, krum": lambda f: NearestNeighbourMixing(f) >> Krum(f),
}
STRONG = {
    "sign_flip x 20": SignFlip(20.0),
    "ipm x 0.5": make_attack("ipm", strength=0.5),
    "alie x 3": make_attack("alie", strength=3.0),
    "min_max unit": make_attack("min_max", direction="unit"),
    "min_sum sign": make_attack("min_sum", direction="sign"),
    "noise x 50": make_attack("gaussian", strength=50.0),
    "zero": make_attack("constant", strength=0.0),
    "huge": make_attack("constant", strength=1e20),
    "replay": Replay((torch.full((23,), 3.0), torch.zeros(23))),
}
EVERY_ATTACK = {name: make_attack(name) for name in ATTACKS} | STRONG


def honest_rows(count: int, seed: int, skew: float) -> torch.Tensor:
    """Rows around a common direction; ``skew`` is how unlike each other they are."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(23, generator=draws) + skew * torch.randn(count, 23, generator=draws)


def excess(rule, honest: torch.Tensor, bad: torch.Tensor) -> float:
    """‖value - mean(S)‖² over the mean of ‖row - mean(S)‖², S the honest rows; bad rows in front."""
    n = len(honest) + len(bad)
    value = rule(torch.cat([bad, honest]), torch.full((n,), 1 / n, dtype=torch.float64)).value.double()
    mean = honest.double().mean(dim=0)
    return float((value - mean).square().sum() / (honest.double() - mean).square().sum(dim=1).mean())


@pytest.mark.parametrize("attack", EVERY_ATTACK)
@pytest.mark.parametrize("name", PUBLISHED)
def test_no_attack_exceeds_kappa(name, attack):
    for n in (5, 9, 16):
        for f in range((n - 1) // 2 + 1):
            rule = PUBLISHED[name](f)
            if rule.least_rows() > n:
                continue
            for seed, skew in itertools.product(range(2), (0.3, 3.0)):
                honest = honest_rows(n - f, seed, skew)
                assert excess(rule, honest, EVERY_ATTACK[attack](honest, f)) <= rule.kappa(n) + 1e-9, (n, f)


@pytest.mark.parametrize("base", ["sign_flip", "ipm", "alie"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_not_even_the_strength_that_is_worst_for_the_rule_exceeds_kappa(name, base):
    for n, f in ((9, 2), (9, 3), (16, 5)):
        rule = PUBLISHED[name](f)
        honest = honest_rows(n - f, f, 1.0)
        weak = make_attack(base, strength=1.0)
        worst = excess(rule, honest, optimal(weak, rule)(honest, f))
        assert worst <= rule.kappa(n)
        for strength in (0.1, 1.0, 10.0):
            assert worst >= excess(rule, honest, make_attack(base, strength=strength)(honest, f)) - 1e-6


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(PUBLISHED)),
    n=st.integers(3, 12),
    seed=st.integers(0, 9999),
    scale=st.sampled_from([0.1, 1.0, 5.0, 100.0]),
)
def test_kappa_holds_for_every_choice_of_the_good_rows(name, n, seed, scale):
    """The definition asks it of any n - f rows, whoever is bad."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 3, generator=draws)
    rows[: n // 3] *= scale
    for f in range((n - 1) // 2 + 1):
        rule = PUBLISHED[name](f)
        if rule.least_rows() > n:
            continue
        for subset in itertools.islice(itertools.combinations(range(n), n - f), 40):
            bad = [i for i in range(n) if i not in subset]
            assert excess(rule, rows[list(subset)], rows[bad]) <= rule.kappa(n) * (1 + 1e-5) + 1e-9


# With these and f = 0 every row counts.
KEEPS_ALL = ["multi_krum", "bulyan", "mda", "monna", "caf", "geometric_median", "centered_clipping"]


@pytest.mark.parametrize("name", KEEPS_ALL)
@pytest.mark.parametrize("mixing", [(), ("nnm",), ("arc",), ("arc", "nnm")])
def test_nobody_is_left_out_when_nobody_is_said_to_be_bad(name, mixing):
    rows = honest_rows(8, 0, 3.0)
    rows[0] *= 50
    found = make_rule(name, mixing=mixing)(rows, torch.full((8,), 1 / 8, dtype=torch.float64))
    assert found.decision.rejected == {}
    if found.decision.weights is not None:
        assert (found.decision.weights > 0).all()


@pytest.mark.parametrize("name", ["multi_krum", "mda", "caf", "krum"])
def test_who_is_left_out_is_who_was_bad(name):
    honest = honest_rows(12, 0, 0.3)
    rows = torch.cat([SignFlip(10.0)(honest, 2), honest])
    found = make_rule(name, num_byzantine=2)(rows, torch.full((14,), 1 / 14, dtype=torch.float64))
    assert {0, 1} <= set(found.decision.rejected)
    assert all(len(reason) > 20 for reason in found.decision.rejected.values())


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
def test_rows_that_are_not_finite_are_named_and_do_not_count(kind):
    honest = honest_rows(6, 1, 1.0)
    rows = torch.cat([NonFinite(kind)(honest, 2), honest])
    found = make_rule("trimmed_mean", num_byzantine=2)(rows, torch.full((8,), 1 / 8, dtype=torch.float64))
    assert list(found.decision.rejected) == [0, 1]
    torch.testing.assert_close(found.value, honest.mean(dim=0))
