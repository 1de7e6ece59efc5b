"""Loops in machine code."""

from __future__ import annotations

import numpy as np
import pytest

from hqde import compiling


def test_where_nothing_can_be_kept_loops_are_compiled_all_the_same(monkeypatch):
    compile_loop = compiling.njit

    def without_directory(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_loop(**options)

    monkeypatch.setattr(compiling, "njit", without_directory)
    assert compiling.compiled()(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_where_sums_are_reordered(bad):
    values = np.ones(1000, np.float32)
    values[500] = bad

    def total(values):
        found = np.float32(0.0)
        for value in values:
            found += value
        return found

    assert not np.isfinite(compiling.compiled(sums_in_any_order=True)(total)(values))
