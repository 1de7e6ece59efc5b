"""Every rule against a slow one in float64 that works on the rows themselves, by loops and subtraction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.aggregation import (
    AdaptiveRobustClipping,
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
)


def apart(x):
    return np.array([[((a - b) ** 2).sum() for b in x] for a in x])


def slow_median(x, f):
    return np.median(x, axis=0)


def slow_trimmed(x, f):
    return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


def slow_around(x, f):
    out = []
    for column in x.T:
        middle = np.median(column)
        out.append(np.mean(sorted(column, key=lambda value: (abs(value - middle), value))[: len(x) - f]))
    return np.array(out)


def scores(x, f):
    square = apart(x)
    count = min(len(x) - 1, max(1, len(x) - f - 2))
    return [
        sum(sorted(square[i][j] for j in range(len(x)) if j != i)[:count]) for i in range(len(x))
    ]  # fmt: skip


def best(x, f):
    found, totals = scores(x, f), apart(x).sum(axis=1)
    tied = [i for i in range(len(x)) if found[i] <= min(found) * (1 + 1e-9)]
    return min(tied, key=lambda i: totals[i])


def slow_krum(x, f):
    return x[best(x, f)]


def slow_multi_krum(x, f):
    return x[np.argsort(scores(x, f), kind="stable")[: len(x) - f]].mean(axis=0)


def slow_bulyan(x, f):
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        chosen.append(left.pop(best(x[left], f)))
    return slow_around(x[sorted(chosen)], 2 * f)


def slow_monna(x, f):
    return x[np.argsort([((a - x[0]) ** 2).sum() for a in x], kind="stable")[: len(x) - f]].mean(axis=0)


def slow_clipping_to(x, limit):
    return np.array([a * min(1.0, limit / max(np.linalg.norm(a), 1e-300)) for a in x])


def slow_arc(x, f):
    norms = sorted((np.linalg.norm(a) for a in x), reverse=True)
    return slow_clipping_to(x, norms[int(2 * f / len(x) * (len(x) - f) + 1e-9)])


def slow_nnm(x, f):
    return np.array(
        [
            x[np.argsort([((a - b) ** 2).sum() for b in x], kind="stable")[: len(x) - f]].mean(axis=0)
            for a in x
        ]
    )


def slow_centered_clipping(x, f, radius=None):
    v = np.zeros(x.shape[1])
    for _ in range(10):
        norms = [np.linalg.norm(a - v) for a in x]
        tau = radius or sorted(norms)[(len(x) + 1) // 2 - 1]
        v = v + sum((a - v) * min(1.0, tau / max(r, 1e-300)) for a, r in zip(x, norms, strict=True)) / len(x)
    return v


def slow_caf(x, f):
    counting, smallest, value = np.ones(len(x)), np.inf, x.mean(axis=0)
    while counting.sum() > len(x) - 2 * f:
        mean = counting @ x / counting.sum()
        y = x - mean
        # The leading direction through the small side of the singular value decomposition.
        _, singular, right = np.linalg.svd(
            np.sqrt(counting / counting.sum())[:, None] * y, full_matrices=False
        )
        if singular[0] ** 2 < smallest:
            smallest, value = singular[0] ** 2, mean
        along = (y @ right[0]) ** 2
        counting = counting * (1 - along / along[counting > 0].max())
    return value


# name: rule of f, oracle of rows and f, least n of f, greatest n that the oracle can do
ORACLES = {
    "mean": (lambda f: Mean(), lambda x, f: x.mean(axis=0), 1, 64),
    "coordinate_median": (CoordinateMedian, slow_median, 1, 64),
    "trimmed_mean": (TrimmedMean, slow_trimmed, 1, 64),
    "mean_around_median": (MeanAroundMedian, slow_around, 1, 64),
    "krum": (Krum, slow_krum, 3, 64),
    "multi_krum": (MultiKrum, slow_multi_krum, 3, 64),
    "bulyan": (Bulyan, slow_bulyan, 3, 24),
    "monna": (Monna, slow_monna, 1, 64),
    "caf": (Caf, slow_caf, 1, 64),
    "centered_clipping": (CenteredClipping, slow_centered_clipping, 1, 64),
    "centered_clipping to 2": (
        lambda f: CenteredClipping(f, radius=2.0),
        lambda x, f: slow_centered_clipping(x, f, 2.0),
        1,
        64,
    ),
    "nnm, mean": (
        lambda f: NearestNeighbourMixing(f) >> Mean(),
        lambda x, f: slow_nnm(x, f).mean(axis=0),
        1,
        64,
    ),
    "nnm, trimmed_mean": (
        lambda f: NearestNeighbourMixing(f) >> TrimmedMean(f),
        lambda x, f: slow_trimmed(slow_nnm(x, f), f),
        1,
        64,
    ),
    "nnm, multi_krum": (
        lambda f: NearestNeighbourMixing(f) >> MultiKrum(f),
        lambda x, f: slow_multi_krum(slow_nnm(x, f), f),
        3,
        64,
    ),
    "clipping, mean": (
        lambda f: Clipping(3.0) >> Mean(),
        lambda x, f: slow_clipping_to(x, 3.0).mean(axis=0),
        1,
        64,
    ),
    "arc, mean": (
        lambda f: AdaptiveRobustClipping(f) >> Mean(),
        lambda x, f: slow_arc(x, f).mean(axis=0),
        1,
        64,
    ),
    "arc, nnm, coordinate_median": (
        lambda f: AdaptiveRobustClipping(f) >> NearestNeighbourMixing(f) >> CoordinateMedian(f),
        lambda x, f: slow_median(slow_nnm(slow_arc(x, f), f), f),
        1,
        64,
    ),
}
TWICE = {"bulyan": 4}  # n >= 4f + 3
PRECISION = {
    "caf": 2e-4
}  # leading eigenvectors turn with the rounding of products where eigenvalues are near


def with_far(x, f, factor):
    x[:f] = x[:f] * factor
    return x


# Rows (n, d) float32 from independent normal ones, with f bad rows in front.
SITUATIONS = {
    "random": lambda x, f: x,
    "far": lambda x, f: with_far(x, f, 30.0),
    "very far": lambda x, f: with_far(x, f, 1e5),
    "in front of a common part": lambda x, f: x + 1e6 * 2.0**-20 * torch.ones(x.shape[1]).sign(),
    "differing by 1e-6 of their norm": lambda x, f: (
        (torch.linspace(0.5, 1.0, x.shape[1]).double() + 1e-6 * x).float().double()
    ),
    "colluding": lambda x, f: torch.cat([(-2.0 * x[f:].mean(dim=0)).expand(f, -1), x[f:]]),
    "small": lambda x, f: x * 1e-6,
    "large": lambda x, f: with_far(x * 1e6, f, 3.0),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", ORACLES)
def test_a_rule_is_its_oracle(name, situation):
    make, oracle, extra, most = ORACLES[name]
    draws = torch.Generator().manual_seed(sum(map(ord, name + situation)))
    for f in (0, 1, 2, 5, 20):
        least = TWICE.get(name, 2) * f + extra
        for n in {max(3, least), max(3, least + 3), min(64, 3 * least)}:
            if n > most or n < least:
                continue
            rows = SITUATIONS[situation](torch.randn(n, 37, generator=draws), f).float()
            found = make(f)(rows, torch.full((n,), 1 / n, dtype=torch.float64)).value.double().numpy()
            expected = oracle(rows.double().numpy(), f)
            reach = np.median(np.linalg.norm(rows.double().numpy() - expected, axis=1))
            error = np.linalg.norm(found - expected)
            assert error <= PRECISION.get(name, 1e-5) * reach + 3e-7 * np.linalg.norm(expected), (
                n,
                f,
                error,
                reach,
            )


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "caf"])
def test_a_rule_is_its_oracle_on_duplicates_and_ties(name):
    """Whole numbers from -1 to 1, so that distances are exact and many are equal; rows come twice."""
    make, oracle, extra, most = ORACLES[name]
    draws = torch.Generator().manual_seed(sum(map(ord, name)))
    for f in (1, 2, 4):
        n = max(3, TWICE.get(name, 2) * f + extra) + 2
        if n > most:
            continue
        rows = torch.randint(-1, 2, (n, 5), generator=draws).float()
        rows[n // 2] = rows[0]
        rows[-1] = rows[1]
        found = make(f)(rows, torch.full((n,), 1 / n, dtype=torch.float64)).value.double().numpy()
        np.testing.assert_allclose(found, oracle(rows.double().numpy(), f), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(3, 11), seed=st.integers(0, 999), ties=st.booleans())
def test_mda_finds_a_smallest_diameter(n, seed, ties):
    draws = torch.Generator().manual_seed(seed)
    rows = (
        torch.randint(-2, 3, (n, 3), generator=draws).float() if ties else torch.randn(n, 3, generator=draws)
    )
    square = apart(rows.double().numpy())
    for f in range((n - 1) // 2 + 1):
        found = (
            MinimumDiameterAveraging(f)(rows, torch.full((n,), 1 / n)).decision.weights.nonzero().flatten()
        )
        smallest = min(square[np.ix_(s, s)].max() for s in itertools.combinations(range(n), n - f))
        assert len(found) == n - f
        assert square[np.ix_(found, found)].max() <= smallest * (1 + 1e-5)


def objective(x, shares, z):
    return float(shares @ np.linalg.norm(x - z, axis=1))


def slow_geometric_median(x, shares):
    """Weiszfeld in float64 on the rows, from the best row and from the mean, and the rows themselves."""
    candidates = list(x)
    for start in (shares @ x, np.median(x, axis=0)):
        z = start
        for _ in range(5000):
            pull = shares / np.maximum(np.linalg.norm(x - z, axis=1), 1e-15 * (1 + np.linalg.norm(z)))
            z = pull @ x / pull.sum()
        candidates.append(z)
    return min(candidates, key=lambda z: objective(x, shares, z))


CLOUDS = {
    "high": lambda n, draws: torch.randn(n, 40, generator=draws),
    "low": lambda n, draws: torch.randn(n, 2, generator=draws),
    "line": lambda n, draws: torch.randn(n, 1, generator=draws),
    "far": lambda n, draws: (
        torch.randn(n, 9, generator=draws) * torch.where(torch.arange(n) % 3 == 0, 1e3, 1).unsqueeze(1)
    ),
    "twice": lambda n, draws: torch.randn((n + 1) // 2, 5, generator=draws).repeat(2, 1)[:n],
    "most are one": lambda n, draws: (
        torch.randn(n, 5, generator=draws) * (torch.arange(n) * 2 > n).unsqueeze(1) + 1
    ),
    "tiny": lambda n, draws: 1e-6 * torch.randn(n, 6, generator=draws),
    "huge": lambda n, draws: 1e6 * torch.randn(n, 6, generator=draws),
}


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("equal", [True, False])
def test_the_geometric_median_is_within_a_millionth_of_its_optimum(cloud, equal):
    draws = torch.Generator().manual_seed(7)
    for n in (3, 4, 5, 8, 16, 33):
        rows = CLOUDS[cloud](n, draws)
        shares = torch.ones(n) if equal else torch.rand(n, generator=draws) + 0.1
        shares = (shares / shares.sum()).double()
        found = GeometricMedian()(rows, shares)
        x, a = rows.double().numpy(), (shares / shares.sum()).numpy()
        optimum = objective(x, a, slow_geometric_median(x, a))
        z = found.decision.weights.numpy() @ x
        assert found.decision.converged, (n, found.decision.iterations)
        assert objective(x, a, z) <= optimum * (1 + 1e-6), (n, found.decision.iterations)
