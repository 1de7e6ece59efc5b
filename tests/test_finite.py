"""Whether sums are finite, of tensors of all sorts."""

from __future__ import annotations

import pytest
import torch

from hqde.finite import has_finite_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_it_is_false_where_a_number_is_not_finite(dtype, bad):
    values = torch.ones(3, 70, dtype=dtype)
    if bad is not None:
        values[1, 5] = bad
    for same in (
        values,
        values.clone().requires_grad_(),
        values.t(),
        torch.nn.Parameter(values),
        values[:, ::2],
    ):
        assert has_finite_sum(same) == (bad is None or (same.shape == (3, 35)))


def test_values_that_numpy_does_not_take():
    assert has_finite_sum(torch.complex(torch.ones(3), torch.ones(3)).conj().imag)
    assert has_finite_sum(torch.empty(0))
    seen = []
    torch.func.grad(lambda x: (seen.append(has_finite_sum(x)), x.sum())[1])(torch.ones(3))
    assert seen == [True]
