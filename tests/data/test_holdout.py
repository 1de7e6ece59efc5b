"""Which rows are held out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.data import hold_out
from hqde.errors import DataError

CLASSES = st.lists(st.integers(0, 4), min_size=2, max_size=120).map(torch.tensor)


@settings(deadline=None, max_examples=50)
@given(targets=CLASSES, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99), stratify=st.booleans())
def test_rows_are_parted_and_each_class_keeps_a_row(targets, fraction, seed, stratify):
    try:
        kept, held = hold_out(targets, fraction, seed=seed, purpose="validation", stratify=stratify)
    except DataError:
        num_held = int(fraction * len(targets) + 0.5)
        singles = stratify and len(targets.unique()) == len(targets)
        assert singles or num_held in (0, len(targets))
        return
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(targets)))
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(held, held.sort().values)
    if stratify:
        assert set(targets[kept].tolist()) == set(targets.tolist())
        wanted = int(fraction * len(targets) + 0.5)
        assert len(held) == min(wanted, len(targets) - len(targets.unique()))
    else:
        assert len(held) == int(fraction * len(targets) + 0.5)


def test_each_class_gives_its_share():
    targets = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    _, held = hold_out(targets, 0.2, seed=0, purpose="test", stratify=True)
    assert torch.bincount(targets[held]).tolist() == [14, 4, 2]


def test_largest_remainders_are_rounded_up():
    targets = torch.tensor([0] * 6 + [1] * 3 + [2] * 1)  # 30 % of it: 1.8, 0.9, 0.3
    _, held = hold_out(targets, 0.3, seed=0, purpose="test", stratify=True)
    assert torch.bincount(targets[held], minlength=3).tolist() == [2, 1, 0]


def test_seed_and_purpose_change_the_rows_and_nothing_else_does():
    targets = torch.arange(1000) % 3
    torch.manual_seed(0)
    first = hold_out(targets, 0.1, seed=0, purpose="validation", stratify=True)[1]
    torch.manual_seed(1)
    assert torch.equal(first, hold_out(targets, 0.1, seed=0, purpose="validation", stratify=True)[1])
    assert not torch.equal(first, hold_out(targets, 0.1, seed=1, purpose="validation", stratify=True)[1])
    assert not torch.equal(first, hold_out(targets, 0.1, seed=0, purpose="test", stratify=True)[1])


@pytest.mark.parametrize(("num_rows", "fraction", "needed"), [(4, 0.1, 5), (1, 0.5, 2), (3, 0.9, 6)])
def test_too_few_rows_are_refused_with_the_number_that_would_do(num_rows, fraction, needed):
    targets = torch.zeros(num_rows)
    with pytest.raises(DataError, match=f"of {num_rows} rows is .* give at least {needed} rows"):
        hold_out(targets, fraction, seed=0, purpose="validation", stratify=False)
    hold_out(torch.zeros(needed), fraction, seed=0, purpose="validation", stratify=False)


def test_classes_of_one_row_each_cannot_be_held_out():
    with pytest.raises(DataError, match="each of the 10 classes has a single row"):
        hold_out(torch.arange(10), 0.2, seed=0, purpose="validation", stratify=True)
