"""Settings for the whole suite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from hqde.ensemble.int8 import check_processor
from hqde.errors import ConfigError

# Timings on shared machines say nothing about the code; wrong results do.
settings.register_profile("hqde", deadline=None, derandomize=True)
settings.load_profile("hqde")


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was():
    """No test may change the thread count or leave gradients switched off for the next."""
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled() == gradients


@pytest.fixture
def int8_processor():
    """Skips where 8-bit sums overflow."""
    try:
        check_processor()
    except ConfigError as reason:
        pytest.skip(str(reason))
