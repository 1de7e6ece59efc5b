"""Attacks by their equations, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from hqde.aggregation import (
    ATTACKS,
    ALittleIsEnough,
    GaussianNoise,
    Mimic,
    MinMax,
    MinSum,
    NonFinite,
    Replay,
    SignFlip,
    TrimmedMean,
    flip_labels,
    make_attack,
    optimal,
)
from hqde.aggregation.attacks_crafted import alie_deviation
from hqde.errors import ConfigError, PreconditionError

HONEST = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) + 1.0


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_attack_is_repeatable_changes_nothing_and_keeps_shape_and_dtype(name, dtype):
    honest = HONEST.to(dtype)
    kept = honest.clone()
    for count in (0, 1, 3):
        bad = make_attack(name)(honest, count)
        assert bad.shape == (count, 50)
        assert bad.dtype == dtype
        assert torch.equal(bad.nan_to_num(7.0), make_attack(name)(honest, count).nan_to_num(7.0))
        bad.zero_()
        assert torch.equal(honest, kept)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_its_own_configuration(name):
    attack = make_attack(name)
    assert eval(repr(attack), {type(attack).__name__: type(attack)}) == attack


def test_noise_is_drawn_from_the_generator_given():
    one = GaussianNoise()(HONEST, 2, generator=torch.Generator().manual_seed(1))
    other = GaussianNoise()(HONEST, 2, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_alie_hides_behind_enough_honest_workers():
    # n = 10, f = 2: s = 6 - 2 = 4 supporters of 8, so Φ(z) = 4 / 8 and z = 0
    # n = 10, f = 4: s = 6 - 4 = 2 of 6, Φ(z) = 4 / 6
    assert alie_deviation(10, 2) == pytest.approx(0.0, abs=1e-12)
    assert alie_deviation(10, 4) == pytest.approx(0.430727, rel=1e-5)
    bad = ALittleIsEnough()(HONEST[:6], 4)
    mean, std = HONEST[:6].mean(dim=0), HONEST[:6].std(dim=0, unbiased=False)
    torch.testing.assert_close(bad[0], mean - 0.430727 * std)


def test_mimic_copies_the_row_that_lies_farthest_out_along_the_widest_direction():
    rows = torch.tensor([[0.0, 0.1], [1.0, -0.1], [-1.0, 0.0], [9.0, 0.0]])
    assert torch.equal(Mimic()(rows, 2), rows[3].repeat(2, 1))
    assert torch.equal(Mimic(target=1)(rows, 1), rows[1:2])


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
def test_min_max_and_min_sum_go_as_far_as_they_can_hide(direction):
    square = torch.cdist(HONEST.double(), HONEST.double()).square()
    for attack, limit, measure in (
        (MinMax(direction), square.max(), lambda s: s.max()),
        (MinSum(direction), square.sum(dim=1).max(), lambda s: s.sum()),
    ):
        bad = attack(HONEST, 1)[0].double()
        mean = HONEST.double().mean(dim=0)
        assert float(measure((HONEST - bad).square().sum(dim=1))) == pytest.approx(float(limit), rel=1e-4)
        farther = mean + 1.01 * (bad - mean)
        assert float(measure((HONEST - farther).square().sum(dim=1))) > float(limit)


def test_optimal_finds_the_peak_of_a_rule():
    rule = TrimmedMean(2)
    found = optimal(ALittleIsEnough(), rule)
    strength = found.best_strength(HONEST, 2, torch.Generator().manual_seed(0))

    def damage(z):
        rows = torch.cat([HONEST, ALittleIsEnough(z)(HONEST, 2)])
        return float((rule(rows, torch.full((9,), 1 / 9)).value - HONEST.mean(dim=0)).norm())

    everywhere = max(damage(z) for z in torch.linspace(-5, 5, 401).tolist())
    assert damage(strength) >= 0.995 * everywhere


def test_labels_are_flipped_as_published():
    targets = torch.arange(10)
    assert flip_labels(targets, 10).tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    to_two = dict.fromkeys((0, 1, 3, 4, 5, 6, 7, 8), 2)
    assert flip_labels(targets, 10, mapping=to_two).tolist() == [2, 2, 2, 2, 2, 2, 2, 2, 2, 9]
    assert targets.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: make_attack("alei"), ConfigError, "unknown attack 'alei'; did you mean 'alie'"),
        (
            lambda: make_attack("alie", strenght=1.0),
            ConfigError,
            "no setting 'strenght'; did you mean 'strength'",
        ),
        (lambda: MinMax("up"), ConfigError, "direction of 'min_max' must be"),
        (lambda: NonFinite("zero"), ConfigError, "kind of 'non_finite' must be"),
        (lambda: optimal(Mimic(), TrimmedMean(1)), ConfigError, "'mimic' has no strength to search for"),
        (lambda: optimal(SignFlip(), TrimmedMean(1), low=2.0, high=1.0), ConfigError, "0 < low < high"),
        (lambda: SignFlip()(torch.zeros(0, 3), 1), PreconditionError, r"honest rows \(h, d\) with h >= 1"),
        (lambda: SignFlip()(torch.zeros(3), 1), PreconditionError, r"got \(3,\) and 1"),
        (lambda: Replay(())(HONEST, 1), PreconditionError, "needs earlier rows"),
        (lambda: flip_labels(torch.tensor([0]), 3, mapping={0: 3}), ConfigError, "not below 3 classes"),
    ],
)
def test_what_an_attack_refuses(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()
