"""What every aggregation rule keeps to, whoever wrote it: one list of checks.

    import pytest
    from hqde.testing import RULE_CHECKS

    @pytest.mark.parametrize("check", RULE_CHECKS)
    def test_my_rule(check):
        check(lambda num_byzantine: MyRule(num_byzantine))

Each takes a function from f to the rule, and fails with an AssertionError.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from hqde.aggregation import BLOCK, Composed, Rule, gram_matrix, gram_parts, merge_parts
from hqde.errors import PreconditionError

RuleMaker = Callable[[int], Rule]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def some_rows(num_rows: int, size: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows ``(n, d)`` around a common point, no two of them equally far apart."""
    draws = torch.Generator().manual_seed(seed)
    centre = torch.randn(size, generator=draws, dtype=torch.float64)
    spread = torch.randn(num_rows, size, generator=draws, dtype=torch.float64)
    return (centre + spread * torch.linspace(0.5, 1.5, num_rows, dtype=torch.float64).unsqueeze(1)).to(dtype)


def equal_shares(num_rows: int) -> Tensor:
    """``(n,)`` float64."""
    return torch.full((num_rows,), 1.0 / num_rows, dtype=torch.float64)


def sizes(make: RuleMaker) -> list[tuple[Rule, int]]:
    """The rule for f of 0 to 3, each with few rows, and with some more."""
    found = []
    for faults in range(4):
        rule = make(faults)
        least = max(rule.least_rows(), 2 * faults + 1)
        found += [(rule, least), (rule, least + 4)]
    return found


def rows_may_be_permuted(make: RuleMaker) -> None:
    """Another order of rows and shares makes no difference but for rounding."""
    for rule, n in sizes(make):
        rows, order = some_rows(n, 60), torch.randperm(n, generator=torch.Generator().manual_seed(1))
        one = rule(rows, equal_shares(n)).value
        other = rule(rows[order], equal_shares(n)).value
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def scaling_the_rows_scales_the_value(make: RuleMaker) -> None:
    """By any factor that the dtype can bear."""
    for rule, n in sizes(make):
        rows = some_rows(n, 60)
        one = rule(rows, equal_shares(n)).value
        for factor in (1e-6, 1e6):
            other = rule(rows * factor, equal_shares(n)).value
            torch.testing.assert_close(other / factor, one, rtol=1e-7, atol=1e-7)


def translating_the_rows_translates_the_value(make: RuleMaker) -> None:
    """Unless the rule says that it does not move along."""
    for rule, n in sizes(make):
        if not rule.moves_along:
            continue
        rows = some_rows(n, 60)
        one = rule(rows, equal_shares(n)).value
        other = rule(rows + 100.0, equal_shares(n)).value
        torch.testing.assert_close(other - 100.0, one, rtol=1e-6, atol=1e-6)


def unanimous_rows_are_the_value(make: RuleMaker) -> None:
    """Where all agree there is nothing to decide; rules that do not move along may fall short of it."""
    for rule, n in sizes(make):
        row = some_rows(1, 60, dtype=torch.float32)[0]
        value = rule(row.expand(n, -1), equal_shares(n)).value
        if rule.moves_along:
            torch.testing.assert_close(value, row, rtol=1e-6, atol=1e-6)
        cosine = torch.nn.functional.cosine_similarity(value, row, dim=0)
        assert float(cosine) > 1 - 1e-6


def any_floating_dtype_will_do(make: RuleMaker) -> None:
    """The value has the dtype of the rows, and is near that of float64 rows."""
    for rule, n in sizes(make)[2:4]:
        rows = some_rows(n, 60)
        exact = rule(rows, equal_shares(n)).value
        for dtype in DTYPES:
            value = rule(rows.to(dtype), equal_shares(n)).value
            assert value.dtype == dtype
            worst = float((value.double() - exact).abs().max())
            assert worst <= 30 * torch.finfo(dtype).eps * float(rows.abs().max())


def nothing_given_is_changed(make: RuleMaker) -> None:
    """Neither rows nor shares, and the value is no view of them."""
    for rule, n in sizes(make):
        rows, shares = some_rows(n, 60), equal_shares(n)
        kept = rows.clone(), shares.clone()
        rule(rows, shares).value.add_(1.0)
        assert torch.equal(rows, kept[0])
        assert torch.equal(shares, kept[1])


def slices_of_columns_have_the_bits_of_the_whole(make: RuleMaker) -> None:
    """Cut at blocks, in any order of arrival, as tensor or list, strided or not."""
    for rule, n in sizes(make)[:6]:
        rows = some_rows(n, 3 * BLOCK + 77, dtype=torch.float32)
        shares = equal_shares(n)
        whole = rule(rows, shares)
        assert torch.equal(rule(list(rows), shares).value, whole.value)
        assert torch.equal(rule(rows.T.contiguous().T, shares).value, whole.value)
        cuts = [slice(2 * BLOCK, None), slice(0, BLOCK), slice(BLOCK, 2 * BLOCK)]
        gram = None
        if rule.basis == "gram":
            parts = [gram_parts([row[cut] for row in rows], first_block=cut.start // BLOCK) for cut in cuts]
            gram = gram_matrix(merge_parts(parts))
        decision = rule.decide(gram, shares)
        pieces = {cut.start: rule.combine([row[cut] for row in rows], decision) for cut in cuts}
        assert torch.equal(torch.cat([pieces[start] for start in sorted(pieces)]), whole.value)


def a_row_that_is_not_finite_never_counts(make: RuleMaker) -> None:
    """The value has the bits of the one without that row, of a rule that knows of one bad row less."""
    for faults in range(1, 4):
        rule, fewer = make(faults), make(faults - 1)
        n = max(rule.least_rows(), 2 * faults + 1) + 1
        rows = some_rows(n, 60, dtype=torch.float32)
        for bad in (float("nan"), float("inf"), float("-inf")):
            for place in (1, n - 1):
                spoilt = rows.clone()
                spoilt[place, 17] = bad
                others = torch.cat([rows[:place], rows[place + 1 :]])
                found = rule(spoilt, equal_shares(n))
                assert torch.equal(found.value, fewer(others, equal_shares(n - 1)).value)
                assert found.decision.rejected[place] == "it holds NaN or infinity"


def bad_rows_cannot_carry_it_off(make: RuleMaker) -> None:
    """f rows anywhere, however far: the value stays within ten times the others' reach of their mean."""
    for faults in range(1, 4):
        rule = make(faults)
        if rule.counts == "nothing":
            continue
        n = max(rule.least_rows(), 2 * faults + 1) + 2
        for far in (10.0, 1e4, 1e12, 1e30):
            rows = some_rows(n, 60, dtype=torch.float32)
            good = rows[: n - faults].double()
            rows[n - faults :] = far * rows[n - faults :] if far < 100 else far
            reach = float((good - good.mean(dim=0)).norm(dim=1).max())
            value = rule(rows, equal_shares(n)).value.double()
            assert float((value - good.mean(dim=0)).norm()) <= 10 * reach


def too_few_rows_are_refused_with_numbers_and_cure(make: RuleMaker) -> None:
    """One row less than it needs."""
    for faults in range(1, 4):
        rule = make(faults)
        n = rule.least_rows() - 1
        if n < 1 or rule.counts == "nothing":
            continue
        try:
            rule(some_rows(n, 6), equal_shares(n))
        except PreconditionError as error:
            sentence = str(error)
        else:
            raise AssertionError(f"{rule} took {n} rows")
        assert re.search(rf"n={n}, f={faults}\. Use .* workers\.", sentence), sentence


def what_no_rule_accepts_is_refused(make: RuleMaker) -> None:
    """No rows, rows of other shapes or dtypes, shares that do not fit."""
    rule = make(0)
    rows, shares = some_rows(4, 6), equal_shares(4)
    for bad_rows, bad_shares in (
        (rows[:0], shares[:0]),
        (rows[0], shares),
        ([rows[0], rows[1], rows[2], rows[3][:5]], shares),
        (rows.long(), shares),
        (rows, shares[:3]),
        (rows, shares * 0.9),
        (rows, torch.tensor([1.5, -0.5, 0.0, 0.0])),
    ):
        try:
            rule(bad_rows, bad_shares)
        except PreconditionError:
            continue
        raise AssertionError(f"{rule} took rows or shares that do not fit")


def a_plan_without_distances_is_refused(make: RuleMaker) -> None:
    """A rule that decides on distances says so when it gets none."""
    rule = make(1)
    if rule.basis != "gram":
        return
    try:
        rule.decide(None, equal_shares(max(9, rule.least_rows())))
    except PreconditionError as error:
        sentence = str(error)
    else:
        raise AssertionError(f"{rule} decided without a Gram matrix")
    assert "gram_matrix" in sentence


def shares_count_as_the_rule_says(make: RuleMaker) -> None:
    """Where heads are counted, shares change nothing; elsewhere they do."""
    rule = make(1)
    if isinstance(rule, Composed):  # before the rule counts heads, a bucket is averaged by shares
        return
    n = max(7, rule.least_rows())
    rows = some_rows(n, 60)
    unequal = torch.linspace(1.0, 1.5, n, dtype=torch.float64)
    one, other = rule(rows, equal_shares(n)).value, rule(rows, unequal / unequal.sum()).value
    assert torch.equal(one, other) == (rule.counts == "heads")


def one_row_without_faults_is_returned(make: RuleMaker) -> None:
    """There is nobody to disagree with."""
    rule = make(0)
    if rule.moves_along and rule.least_rows() == 1:
        row = some_rows(1, 60)
        torch.testing.assert_close(rule(row, equal_shares(1)).value, row[0])


RULE_CHECKS: tuple[Callable[[RuleMaker], None], ...] = (
    rows_may_be_permuted,
    scaling_the_rows_scales_the_value,
    translating_the_rows_translates_the_value,
    unanimous_rows_are_the_value,
    any_floating_dtype_will_do,
    nothing_given_is_changed,
    slices_of_columns_have_the_bits_of_the_whole,
    a_row_that_is_not_finite_never_counts,
    bad_rows_cannot_carry_it_off,
    too_few_rows_are_refused_with_numbers_and_cure,
    one_row_without_faults_is_returned,
    what_no_rule_accepts_is_refused,
    a_plan_without_distances_is_refused,
    shares_count_as_the_rule_says,
)
