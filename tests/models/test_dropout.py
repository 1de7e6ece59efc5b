"""Dropout masks: whatever makes them, the same numbers."""

from __future__ import annotations

import pytest
import torch

from hqde.models import draw_mask, scaled_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_mask_is_the_scale_where_draws_reach_the_limit(dtype, rate):
    draws = torch.arange(-(2**15), 2**15).to(torch.int16).view(256, 256)
    limit = torch.tensor(round(rate * 2**16) - 2**15, dtype=torch.int16)
    scale = torch.tensor(1 / (1 - rate))
    found = scaled_mask(draws, limit, scale, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, (draws >= limit) * scale.to(dtype))
    assert float((found == 0).double().mean()) == pytest.approx(rate, abs=2**-16)


def test_rows_have_limits_and_scales_of_their_own():
    draws = torch.randint(-(2**15), 2**15, (3, 100), dtype=torch.int16)
    limits = torch.tensor([[-(2**15)], [0], [2**15 - 1]], dtype=torch.int16)
    scales = torch.tensor([[1.0], [2.0], [3.0]])
    together = scaled_mask(draws, limits, scales, torch.bfloat16)
    for row, found in enumerate(together):
        assert torch.equal(found, scaled_mask(draws[row], limits[row, 0], scales[row, 0], torch.bfloat16))
    assert torch.equal(together[0], torch.ones(100, dtype=torch.bfloat16))


def test_numbers_that_do_not_fill_a_draw_of_64_bits():
    drawn = draw_mask(0.25, (3, 7), torch.float32, torch.Generator().manual_seed(0))
    again = draw_mask(0.25, (21,), torch.float32, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 7)
    assert torch.equal(drawn.flatten(), again)
    assert drawn.unique().tolist() == pytest.approx([0.0, 4 / 3])
