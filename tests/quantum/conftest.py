"""Pools of members of mixed skill, made from a seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hqde.quantum import error_gram


def build_pool(seed: int, *, members: int = 8, rows: int = 80, classes: int = 4) -> tuple[Tensor, Tensor]:
    """(m, n, c) float64 probabilities whose errors are correlated in families, and targets (n,)."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=draws)
    hit = torch.nn.functional.one_hot(targets, classes).double()
    skill = 0.3 + 1.2 * torch.rand(members, generator=draws).double()
    families = torch.randn(3, rows, classes, generator=draws).double()
    family = torch.randint(3, (members,), generator=draws)
    own = torch.randn(members, rows, classes, generator=draws).double()
    return torch.softmax(2 * (skill[:, None, None] * hit + 0.6 * families[family] + 0.6 * own), 2), targets


@pytest.fixture(scope="session")
def make_pool():
    return build_pool


@pytest.fixture(scope="session")
def make_gram():
    """The Gram matrix of errors of such a pool."""
    return lambda seed, **options: error_gram(*build_pool(seed, **options))
