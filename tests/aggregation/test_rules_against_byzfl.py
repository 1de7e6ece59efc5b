"""Against ByzFL 0.0.11, where it is installed and right.

Where it is not asked, and why: its geometric median stops after three steps with an absolute smoothing; its
CAF takes one step of power iteration from a random start; its centered clipping starts from what it keeps.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from hqde.aggregation import AdaptiveRobustClipping, Clipping, Mean, NearestNeighbourMixing, make_rule


def byzfl_parts() -> tuple[ModuleType, ModuleType]:
    """ByzFL's aggregators and pre-aggregators, without the rest of it, which wants a plotting library."""
    found = importlib.util.find_spec("byzfl")
    if found is None:
        pytest.skip("ByzFL is not installed", allow_module_level=True)
    package = ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["byzfl"] = package
    try:
        return (
            importlib.import_module("byzfl.aggregators.aggregators"),
            importlib.import_module("byzfl.aggregators.preaggregators"),
        )
    finally:
        del sys.modules["byzfl"]


byzfl, before = byzfl_parts()

PAIRS = {
    "mean": lambda f: byzfl.Average(),
    "coordinate_median": lambda f: byzfl.Median(),
    "trimmed_mean": byzfl.TrMean,
    "mean_around_median": byzfl.Meamed,
    "krum": byzfl.Krum,
    "multi_krum": byzfl.MultiKrum,
    "monna": byzfl.MoNNA,
    "mda": byzfl.MDA,
}


def some_rows(n: int, f: int) -> torch.Tensor:
    rows = torch.randn(n, 200, generator=torch.Generator().manual_seed(n))
    rows[:f] *= 10
    return rows


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("n", "f"), [(5, 1), (9, 3), (12, 2)])
def test_a_rule_is_byzfl_s(name, n, f):
    rows, shares = some_rows(n, f), torch.full((n,), 1 / n)
    ours = make_rule(name, num_byzantine=0 if name == "mean" else f)(rows, shares).value
    torch.testing.assert_close(ours, PAIRS[name](f)(rows.clone()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "f"), [(5, 1), (9, 3), (12, 2)])
def test_pre_aggregators_are_byzfl_s(n, f):
    rows, shares = some_rows(n, f), torch.full((n,), 1 / n)
    for ours, theirs in (
        (NearestNeighbourMixing(f), before.NNM(f)),
        (AdaptiveRobustClipping(f), before.ARC(f)),
        (Clipping(7.0), before.Clipping(7.0)),
    ):
        found = (ours >> Mean())(rows, shares).value
        torch.testing.assert_close(found, theirs(rows.clone()).mean(dim=0), rtol=1e-4, atol=1e-5)
