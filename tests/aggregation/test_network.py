"""Pruned networks find the positions asked for, in every order that values can come in."""

from __future__ import annotations

import itertools

import pytest
import torch

from hqde.aggregation.columns import run_network
from hqde.aggregation.network import network


def zeros_and_ones(num_wires: int) -> list[torch.Tensor]:
    """Wires that hold all 0-1 inputs, a column each: a network that sorts these sorts everything (Knuth)."""
    if num_wires <= 14:
        columns = list(itertools.product((0.0, 1.0), repeat=num_wires))
        return list(torch.tensor(columns).T.contiguous())
    draws = torch.Generator().manual_seed(num_wires)
    return list(torch.randn(num_wires, 4000, generator=draws))


@pytest.mark.parametrize("n", [*range(1, 15), 16, 31, 64, 100])
def test_sums_and_single_positions_are_those_of_sorting(n):
    for f in {0, n // 5, n // 3, (n - 1) // 2}:
        summed, read = range(f, n - f), tuple(sorted({0, n // 2, n - 1}))
        wires = zeros_and_ones(n)
        ordered = torch.stack(wires).sort(dim=0).values
        run_network(network(n, summed), wires, torch.empty_like(wires[0]))
        torch.testing.assert_close(torch.stack(wires[f : n - f]).sum(dim=0), ordered[f : n - f].sum(dim=0))
        wires = zeros_and_ones(n)
        run_network(network(n, summed, read), wires, torch.empty_like(wires[0]))
        for position in read:
            assert torch.equal(wires[position], ordered[position])


def test_what_nobody_asks_for_is_left_out():
    assert network(16, range(16)) == ()
    full = network(16, range(0), tuple(range(16)))
    assert len(full) == 63  # Batcher's for 16
    assert len(network(16, range(7, 9))) < len(full)
    assert len(network(16, range(0), (0,))) == 15  # a minimum
    assert len(network(64, range(31, 33))) < 0.85 * len(network(64, range(0), tuple(range(64))))
