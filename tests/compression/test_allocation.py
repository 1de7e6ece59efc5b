"""Budgets met to the bit, and as well as brute force spends them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqde.compression import allocate_bits, dequantize_blocks, linear_bits, quantize_blocks
from hqde.compression.allocation import GAUSSIAN_DISTORTION
from hqde.errors import ConfigError, PreconditionError


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3), st.integers(2, 5), st.floats(0, 1))
def test_allocation_is_what_brute_force_finds(
    seed: int, count: int, low: int, more: int, fraction: float
) -> None:
    high = low + more
    spread = torch.from_numpy(np.exp(4 * np.random.default_rng(seed).standard_normal(count))).float()
    average = low + fraction * (high - low)
    widths = allocate_bits(spread, average, low, high)
    budget = round(average * count)
    assert int(widths.sum()) == budget

    def error(bits: tuple[int, ...]) -> float:
        return sum(float(s) * GAUSSIAN_DISTORTION[b - 1] for s, b in zip(spread, bits, strict=True))

    options = (b for b in product(range(low, high + 1), repeat=count) if sum(b) == budget)
    assert error(tuple(widths.tolist())) <= min(map(error, options)) * (1 + 1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(0, 500), st.floats(2, 16))
def test_any_budget_is_met_to_the_bit(seed: int, count: int, average: float) -> None:
    draws = np.random.default_rng(seed)
    spread = torch.from_numpy(draws.choice([0.0, 1.0, 1.0, 7.0, 1e-9], count)).float()
    for widths in (
        allocate_bits(spread, average),
        linear_bits(spread.clamp(max=1.0), 2, 16, average_bits=average),
    ):
        assert int(widths.sum()) == round(average * count)
        assert not count or (int(widths.min()) >= 2 and int(widths.max()) <= 16)


def test_the_table_of_errors_is_the_quantisers() -> None:
    rows = torch.randn(2000, 128, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in range(1, 17):
        codes, scales = quantize_blocks(rows, bits)
        errors.append(float((dequantize_blocks(codes, scales, bits) - rows).double().square().mean()))
    assert errors == pytest.approx(GAUSSIAN_DISTORTION, rel=0.02)
    gains = -np.diff(GAUSSIAN_DISTORTION)
    assert (np.diff(gains) < 0).all()  # convex: otherwise the largest gains are not the optimum


def test_the_seeds_linear_rule() -> None:
    assert linear_bits(torch.tensor([0.0, 0.5, 1.0])).tolist() == [4, 10, 16]
    with pytest.raises(PreconditionError, match=r"got 0 to 1\.5"):
        linear_bits(torch.tensor([0.0, 1.5]))
    with pytest.raises(ConfigError, match="min_bits=4 to max_bits=16: lower min_bits to 3"):
        linear_bits(torch.tensor([0.0]), average_bits=3)
    with pytest.raises(ConfigError, match="an average of 1 bits is outside min_bits=2 to max_bits=16"):
        allocate_bits(torch.ones(3), 1.0)
    with pytest.raises(ConfigError, match="1 to 16"):
        allocate_bits(torch.ones(3), 1.0, 0, 4)
