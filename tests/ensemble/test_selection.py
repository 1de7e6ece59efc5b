"""Selecting members of an ensemble: what is chosen, on which rows, and what it is compared with."""

from __future__ import annotations

import pytest
import torch

from hqde.ensemble import AutoCombiner, StackingCombiner, member_bytes, member_latencies_ms, select_members
from hqde.errors import ConfigError, PreconditionError
from hqde.metrics import brier, rmse


@pytest.fixture
def labelled():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(3)) * 3 + 1
    return rows, (rows[:, 0] > rows[:, 1]).long() + (rows[:, 2] > 3).long()


@pytest.fixture
def judging():
    rows = torch.randn(90, 5, generator=torch.Generator().manual_seed(4)) * 3 + 1
    return rows, (rows[:, 0] > rows[:, 1]).long() + (rows[:, 2] > 3).long()


def test_the_selected_members_have_the_least_brier_score_on_the_selecting_rows(
    make_ensemble, labelled, judging
):
    ensemble = make_ensemble(num_members=6)
    found = select_members(ensemble, 2, labelled, judge=judging)
    members, targets = ensemble.predict_members(labelled[0]).double(), labelled[1]
    scores = {
        (i, j): float(brier(members[[i, j]].mean(0), targets)) for i in range(6) for j in range(i + 1, 6)
    }
    assert found.selected == min(scores, key=scores.__getitem__)
    assert found.energy == pytest.approx(min(scores.values()), abs=1e-6)
    assert (found.solver, found.exact) == ("brute", True)
    assert (found.num_selecting_rows, found.num_judging_rows) == (200, 90)
    assert found.ensemble.member_ids == found.selected
    assert found.ensemble.provenance["selection"]["of"] == list(range(6))


def test_the_comparison_is_on_the_judging_rows(make_ensemble, labelled, judging):
    ensemble = make_ensemble(num_members=6)
    found = select_members(ensemble, 2, labelled, judge=judging)
    by_name = {row["set"]: row for row in found.comparison}
    assert list(by_name) == ["selected", "best single", "top 2", "greedy", "all"]
    result = found.ensemble.evaluate(judging)
    for figure in ("accuracy", "nll", "brier", "ece"):
        assert by_name["selected"][figure] == pytest.approx(getattr(result, figure))
    whole = ensemble.calibrate(labelled).evaluate(judging)
    assert by_name["all"]["nll"] == pytest.approx(whole.nll)
    assert by_name["selected"]["selecting_score"] == found.energy
    assert by_name["all"]["bytes"] == sum(member_bytes(ensemble))
    assert by_name["selected"]["selecting_score"] <= by_name["top 2"]["selecting_score"]
    assert len(by_name["best single"]["members"]) == 1


def test_without_judging_rows_half_of_the_rows_judge(make_ensemble, labelled):
    ensemble = make_ensemble(num_members=4)
    found = select_members(ensemble, 2, labelled, seed=1)
    assert (found.num_selecting_rows, found.num_judging_rows) == (100, 100)
    again = select_members(ensemble, 2, labelled, seed=1)
    assert (again.selected, again.energy) == (found.selected, found.energy)
    assert select_members(ensemble, 2, labelled, seed=2).energy != found.energy


def test_a_fitted_combiner_is_fitted_anew_for_the_selected(make_ensemble, labelled, judging):
    whole = make_ensemble(num_members=5).fit_combiner("stacking", labelled)
    found = select_members(whole, 3, labelled, judge=judging)
    assert isinstance(found.ensemble.combiner, StackingCombiner)
    expected = whole.select(found.selected).fit_combiner("stacking", labelled)
    assert found.ensemble.combiner == expected.combiner
    assert found.ensemble.temperature == expected.temperature


def test_auto_chooses_anew_for_the_selected(make_ensemble, labelled, judging):
    whole = make_ensemble(num_members=4, combiner=AutoCombiner())
    found = select_members(whole, 2, labelled, judge=judging)
    assert found.ensemble.combiner.name in ("mean", "stacking", "entanglement")


def test_budgets_of_bytes_and_time(make_ensemble, labelled, judging):
    ensemble = make_ensemble(num_members=6)
    sizes = member_bytes(ensemble)
    assert sizes == tuple(4 * member.num_parameters for member in ensemble.members)
    most = sizes[0] + sizes[1]
    found = select_members(ensemble, 2, labelled, judge=judging, max_bytes=most)
    assert found.selected == (0, 1)  # the two smallest
    with pytest.raises(PreconditionError, match=r"no 2 members keep to the budget .* bytes"):
        select_members(ensemble, 2, labelled, judge=judging, max_bytes=most - 1)
    with pytest.raises(PreconditionError, match=r"no 2 members keep to the budget .* ms"):
        select_members(ensemble, 2, labelled, judge=judging, max_ms=1e-6)
    assert len(select_members(ensemble, 2, labelled, judge=judging, max_ms=1e6).selected) == 2


def test_latency_is_the_median_of_what_a_clock_says(make_ensemble, rows):
    ticks = iter([0.0, 9.0] + [10.0 + 2 * i for i in range(14)] * 1 + [100.0] * 100)
    found = member_latencies_ms(make_ensemble(num_members=1), rows, clock=lambda: next(ticks))
    assert found == (2000.0,)  # the first, of 9 s, warms up


def test_regression_is_selected_by_squared_error(make_ensemble, labelled, judging):
    ensemble = make_ensemble(loss="gaussian_nll", num_members=5)
    data = labelled[0], labelled[0][:, 0] * 20 + 100
    found = select_members(ensemble, 2, data, judge=(judging[0], judging[0][:, 0] * 20 + 100))
    means = ensemble.predict_members(data[0])[..., 0].double()
    pooled = means[list(found.selected)].mean(0)
    assert found.energy == pytest.approx(float(rmse(pooled, data[1].double())) ** 2, rel=1e-5)
    assert {"rmse", "bytes", "ms"} <= found.comparison[0].keys()


def test_what_does_not_fit_is_refused_in_a_sentence(make_ensemble, labelled):
    ensemble = make_ensemble(num_members=3)
    for size in (0, 4):
        with pytest.raises(PreconditionError, match=f"size={size} members cannot be chosen of 3"):
            select_members(ensemble, size, labelled)
    with pytest.raises(ConfigError, match="unknown sampler"):
        select_members(ensemble, 2, labelled, sampler="quantum")
    one = labelled[0][:1], labelled[1][:1]
    with pytest.raises(PreconditionError, match="1 rows cannot be divided"):
        select_members(ensemble, 2, one)
