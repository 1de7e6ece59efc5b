"""Rows that the user's own code makes."""

from __future__ import annotations

import sys

import pytest
import torch

from hqde.data import load_splits
from hqde.errors import DataError

CODE = """
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from hqde.data import TensorExamples, load_splits

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3
TABLE = [1, 2]

def pair(): return X, Y
def arrays(): return X.numpy(), Y.numpy()
def lists(): return X.tolist(), Y.tolist()
def fractions(): return X, Y / 2
def examples(): return TensorExamples(X, Y)
def loader(): return DataLoader(TensorDataset(X, Y), batch_size=7)
def parts(): return (X, Y), (X[:10], Y[:10])
def datasets(): return TensorDataset(X, Y), TensorDataset(X[:10], Y[:10])
def three(): return (X, Y), (X[:6], Y[:6]), (X[:10], Y[:10])
def splits(): return load_splits("digits", max_train=200)
def fails(): raise KeyError("no such thing")
def refuses(): return load_splits("digitz")
def nothing(): return None
def unequal(): return X, Y[:9]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module ``mine`` in the current folder."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("name", ["pair", "arrays", "lists", "examples", "loader"])
def test_rows_in_any_form(mine, name):
    splits = load_splits(f"mine:{name}")
    assert splits.name == f"mine:{name}"
    assert splits.schema.task == "classification"
    assert splits.schema.num_classes == 3
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (43, 5, 12)
    assert splits.train.targets.dtype == torch.int64


@pytest.mark.parametrize("name", ["parts", "datasets"])
def test_training_and_test_rows(mine, name):
    splits = load_splits(f"mine:{name}")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (54, 6, 10)


def test_all_three_parts(mine):
    splits = load_splits("mine:three")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (60, 6, 10)


def test_splits_are_taken_over(mine):
    splits = load_splits("mine:splits")
    assert splits.name == "digits"
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (180, 20, 359)
    with pytest.raises(DataError, match="returns Splits for classification, but task='regression'"):
        load_splits("mine:splits", task="regression")


def test_the_task_is_what_the_targets_say_unless_told(mine):
    assert load_splits("mine:fractions").schema.task == "regression"
    assert load_splits("mine:pair", task="regression").train.targets.dtype == torch.float32
    with pytest.raises(DataError, match="not whole numbers"):
        load_splits("mine:fractions", task="classification")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mine:pairs", "module 'mine' has no function 'pairs'; did you mean 'pair'"),
        ("mine:TABLE", "mine:TABLE is a list, not a function"),
        ("mine:fails", "mine:fails failed with KeyError: 'no such thing'"),
        ("mine:refuses", "unknown data set 'digitz'; did you mean 'digits'"),
        (
            "mine:nothing",
            "mine:nothing returns rows that cannot be used: cannot read labelled rows from NoneType",
        ),
        ("mine:unequal", "inputs have 60 rows and targets 9"),
        ("nobody_wrote_this:f", "no module 'nobody_wrote_this' for data"),
        ("mine.sub:f", "no module 'mine.sub'|not a package"),
        ("cifar1:files", "unknown data set 'cifar1:files'; did you mean 'cifar10'"),
    ],
)
def test_what_cannot_be_used_is_refused(mine, source, message):
    with pytest.raises(DataError, match=message):
        load_splits(source)


def test_errors_inside_the_module_name_their_cause(mine):
    (mine / "needy.py").write_text("import not_installed_anywhere")
    with pytest.raises(
        DataError, match="module 'needy' needs 'not_installed_anywhere', which is not installed"
    ):
        load_splits("needy:rows")
    (mine / "broken.py").write_text("1 / 0")
    with pytest.raises(DataError, match="module 'broken' fails on import with ZeroDivisionError") as caught:
        load_splits("broken:rows")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
