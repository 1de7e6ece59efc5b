"""as_examples: every usual holder of labelled rows."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from hqde.data import MapExamples, SubsetExamples, TensorExamples, as_examples, as_inputs
from hqde.errors import DataError

X = torch.arange(12.0).reshape(6, 2)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Squares(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, row):
        return X[row], Y[row]


class Stream(IterableDataset):
    """An iterable dataset that can be read only once."""

    def __init__(self, items=None):
        self.items = iter([(X[row], int(Y[row])) for row in range(6)] if items is None else items)

    def __iter__(self):
        return self.items


def assert_the_rows(examples):
    assert len(examples) == 6
    assert torch.equal(examples.targets, Y)
    batch = examples.fetch(torch.tensor([5, 0]))
    assert torch.equal(batch.inputs.float(), X[[5, 0]])
    assert batch.targets.tolist() == [2, 0]


@pytest.mark.parametrize(
    "data",
    [
        TensorExamples(X, Y),
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X.numpy().astype(np.float64), Y.numpy().astype(np.int32)),
        (X.numpy().astype(">f4"), Y.numpy().astype(">i8")),
        (X.tolist(), Y.tolist()),
        (X, Y.double()),
        (X, Y.unsqueeze(1)),
        TensorDataset(X, Y),
        Squares(),
        Subset(Squares(), range(6)),
        Stream(),
        DataLoader(Squares(), batch_size=4, shuffle=True),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(Squares(), batch_size=None),
        DataLoader(Stream(), batch_size=4),
        DataLoader(Squares(), batch_sampler=BatchSampler(SequentialSampler(Squares()), 2, drop_last=True)),
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_holder_gives_the_same_rows(data):
    assert_the_rows(as_examples(data))


def test_examples_are_given_back_as_they_are():
    examples = TensorExamples(X, Y)
    assert as_examples(examples) is examples
    subset = SubsetExamples(examples, torch.arange(3))
    assert as_examples(subset) is subset


def test_rows_in_memory_stay_there_and_datasets_stay_lazy():
    assert isinstance(as_examples(TensorDataset(X, Y)), TensorExamples)
    assert isinstance(as_examples(DataLoader(TensorDataset(X, Y))), TensorExamples)
    assert isinstance(as_examples(DataLoader(Squares())), MapExamples)
    part, _ = random_split(TensorDataset(X, Y), [4, 2], generator=torch.Generator().manual_seed(0))
    examples = as_examples(part)
    assert isinstance(examples, SubsetExamples)
    assert torch.equal(examples.targets, Y[torch.tensor(part.indices)])


@pytest.mark.parametrize("key", ["labels", "label"])
def test_dicts_of_tensors_or_arrays(key):
    examples = as_examples({"ids": X.numpy(), "mask": X > 3, key: Y})
    assert sorted(examples.inputs) == ["ids", "mask"]
    assert torch.equal(examples.targets, Y)
    # what tokenisers return is no dict but behaves like one
    assert len(as_examples(UserDict({"ids": X, "labels": Y}))) == 6


def test_several_inputs_beside_the_targets():
    examples = as_examples(((X, Y), Y))
    assert isinstance(examples.inputs, tuple)
    assert isinstance(as_examples(TensorDataset(X, X, Y)).inputs, tuple)
    assert list(as_examples(({"a": X}, Y)).inputs) == ["a"]


def test_regression_targets_are_float32():
    for data in [(X, Y), (X, Y.double()), TensorDataset(X, Y), Squares(), TensorExamples(X, Y), Stream()]:
        targets = as_examples(data, task="regression").targets
        assert targets.dtype == torch.float32
        assert targets.tolist() == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    subset = SubsetExamples(TensorExamples(X, Y), torch.tensor([1]))
    assert as_examples(subset, task="regression").targets.dtype == torch.float32


def test_float_class_ids_of_examples_become_whole():
    assert as_examples(TensorExamples(X, Y.float())).targets.dtype == torch.int64


def test_fractions_are_no_class_ids():
    with pytest.raises(DataError, match=r"1 of 2 class labels are not whole numbers \(first: 0.5 in row 1\)"):
        as_examples((X[:2], torch.tensor([0.0, 0.5])))
    with pytest.raises(DataError, match="nan in row 0"):
        as_examples((X[:2], torch.tensor([float("nan"), 0.5])))


def test_a_loaders_collate_function_is_used():
    def double(items):
        xs, ys = zip(*items, strict=True)
        return {"x": torch.stack(xs) * 2, "labels": torch.stack(ys)}

    examples = as_examples(DataLoader(Squares(), collate_fn=double))
    assert torch.equal(examples.fetch(torch.tensor([1])).inputs["x"], X[1:2] * 2)
    over_tensors = as_examples(DataLoader(TensorDataset(X, Y), collate_fn=double))
    assert torch.equal(over_tensors.fetch(torch.tensor([1])).inputs["x"], X[1:2] * 2)


def test_a_loaders_subset_of_rows_is_kept():
    examples = as_examples(DataLoader(Squares(), sampler=SubsetRandomSampler([4, 1])))
    assert examples.targets.tolist() == [1, 1]
    assert torch.equal(examples.fetch(torch.tensor([0])).inputs, X[4:5])


class Evens(BatchSampler):
    """A batch sampler with a mind of its own."""


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Squares(), sampler=WeightedRandomSampler([1.0] * 6, 6)),
        DataLoader(Squares(), sampler=RandomSampler(Squares(), replacement=True)),
        DataLoader(Squares(), sampler=RandomSampler(Squares(), num_samples=3)),
        DataLoader(Squares(), batch_sampler=Evens(SequentialSampler(Squares()), 2, False)),
    ],
    ids=["weighted", "replacement", "some", "batches"],
)
def test_samplers_whose_choice_would_be_lost_are_refused(loader):
    with pytest.raises(DataError, match="chooses its own rows"):
        as_examples(loader)


def test_a_long_stream_is_joined_from_pieces():
    items = [(torch.tensor([float(row)]), row % 2) for row in range(2500)]
    examples = as_examples(Stream(items))
    assert torch.equal(examples.inputs[:, 0], torch.arange(2500.0))


def test_streams_that_are_empty_or_change_form_are_refused():
    with pytest.raises(DataError, match="Stream gave no batches"):
        as_examples(Stream([]))
    ragged = DataLoader(Stream([(torch.zeros(2), 0), (torch.zeros(3), 1)]), batch_size=1)
    with pytest.raises(DataError, match="batches of different form"):
        as_examples(ragged)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "cannot read labelled rows from int"),
        ("digits", "from str"),
        (X, "lone Tensor has no targets"),
        (X.numpy(), "lone ndarray"),
        ((X, Y, Y, Y), "from tuple"),
        ({"x": X}, "'labels' or 'label'"),
        ((X, ["a"] * 6), "targets hold <U1, not numbers"),
        (([[1, 2], [3]], [0, 1]), "do not form one array"),
        ((X, Y[:5]), "6 rows and targets 5"),
        ((X, torch.zeros(6, 3)), r"shape \(6, 3\)"),
    ],
)
def test_everything_else_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        as_examples(data)


def test_unlabelled_inputs():
    assert torch.equal(as_inputs(X), X)
    assert as_inputs(X.numpy()[::-1]).shape == (6, 2)
    assert as_inputs({"a": [1, 2]})["a"].dtype == torch.int64
    assert isinstance(as_inputs((X.numpy(), X)), tuple)
    locked = X.numpy().copy()
    locked.flags.writeable = False
    assert torch.equal(as_inputs(locked), X)
    assert as_inputs(np.ones((1, 1), dtype=np.longdouble)).dtype == torch.float64
