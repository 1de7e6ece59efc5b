"""A rule that remembers: it changes nothing but what it is told to, and says what it saw."""

from __future__ import annotations

import pytest
import torch

from hqde.aggregation import (
    CoordinateMedian,
    Mean,
    Reliability,
    Remembering,
    agreement,
    gram_matrix,
    gram_parts,
    make_rule,
    outlier_scores,
)

RULES = [
    Mean(),
    CoordinateMedian(1),
    make_rule("multi_krum", num_byzantine=1),
    make_rule("trimmed_mean", num_byzantine=1, mixing=["nnm"]),
]


def rows_with_a_far_one(count=7, size=50):
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    rows[-1] += 30.0
    return rows, torch.arange(1.0, count + 1).double() / sum(range(1, count + 1))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_to_record_changes_no_bit_of_the_value(rule):
    rows, shares = rows_with_a_far_one()
    found = Remembering(rule, (0.5,) * 7, Reliability(), "record")(rows, shares)
    plain = rule(rows, shares)
    assert torch.equal(found.value, plain.value)
    assert found.decision.rejected == plain.decision.rejected
    gram = gram_matrix(gram_parts(rows))
    assert torch.equal(found.decision.agreement, agreement(gram, shares))
    assert torch.equal(found.decision.outliers["mad"], outlier_scores(gram).mad)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_to_exclude_gives_the_value_of_the_others_alone(rule):
    rows, shares = rows_with_a_far_one()
    scores = (0.9, 0.9, 0.3, 0.9, 0.9, 0.9, 0.1)
    found = Remembering(rule, scores, Reliability(threshold=0.5), "exclude")(rows, shares)
    kept = [0, 1, 3, 4, 5]
    alone = rule(rows[kept], shares[kept] / shares[kept].sum())
    torch.testing.assert_close(found.value, alone.value)
    assert {2, 6} <= set(found.decision.rejected)
    assert "below 0.5" in found.decision.rejected[6]
    assert len(found.decision.agreement) == 7


def test_nobody_is_excluded_where_all_agree():
    rows, shares = torch.ones(4, 9), torch.full((4,), 0.25)
    found = Remembering(Mean(), (0.1, 0.9, 0.9, 0.9), Reliability(), "exclude")(rows, shares)
    assert found.decision.rejected == {}
    assert torch.equal(found.decision.agreement, torch.ones(4, dtype=torch.float64))


def test_to_weigh_multiplies_shares_by_scores():
    rows, shares = torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 0.5])
    found = Remembering(Mean(), (0.9, 0.3), Reliability(), "weigh")(rows, shares)
    assert float(found.value) == pytest.approx(1.0 * 0.75 + 3.0 * 0.25)


def test_it_needs_as_many_rows_as_its_rule():
    assert Remembering(RULES[2], (), Reliability()).least_rows() == RULES[2].least_rows() == 5
