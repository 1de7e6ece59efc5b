"""Examples: the same rows whichever way they are held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from hqde.data import Batch, MapExamples, SubsetExamples, TensorExamples, num_rows, take_rows
from hqde.data.examples import split_batch
from hqde.data.source import EncodedExamples, decode_parts, is_encoded
from hqde.errors import DataError, PreconditionError


class Rows(Dataset):
    """A map-style dataset that counts how often it is read."""

    def __init__(self, items):
        self.items = items
        self.reads = 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        self.reads += 1
        return self.items[row]


class RowsAtOnce(Rows):
    """One that hands out many items at once."""

    def __getitems__(self, rows):
        return [self.items[row] for row in rows]

    def __getitem__(self, row):
        raise AssertionError("the whole list should be asked for")


INPUTS = torch.arange(20.0).reshape(10, 2)
TARGETS = torch.arange(10) % 3
ITEMS = [(INPUTS[row], int(TARGETS[row])) for row in range(10)]


@pytest.mark.parametrize(
    "examples",
    [
        TensorExamples(INPUTS, TARGETS),
        MapExamples(Rows(ITEMS)),
        MapExamples(RowsAtOnce(ITEMS)),
        SubsetExamples(TensorExamples(INPUTS.flip(0), TARGETS.flip(0)), torch.arange(9, -1, -1)),
        EncodedExamples(TARGETS, lambda index: INPUTS[index]),
    ],
    ids=["tensors", "dataset", "dataset with __getitems__", "subset", "encoded"],
)
@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_rows_come_in_the_order_asked_for_repeats_allowed(examples, rows):
    index = torch.tensor(rows)
    batch = examples.fetch(index)
    assert isinstance(batch, Batch)
    assert len(examples) == 10
    assert torch.equal(examples.targets, TARGETS)
    assert torch.equal(batch.inputs, INPUTS[index])
    assert torch.equal(batch.targets, TARGETS[index])
    assert batch.targets.dtype == torch.int64


@settings(deadline=None, max_examples=50)
@given(outer=st.lists(st.integers(0, 9), min_size=1), data=st.data())
def test_a_subset_of_a_subset_is_one_hop(outer, data):
    inner = data.draw(st.lists(st.integers(0, len(outer) - 1), min_size=1))
    base = TensorExamples(INPUTS, TARGETS)
    nested = SubsetExamples(SubsetExamples(base, torch.tensor(outer)), torch.tensor(inner))
    assert nested.examples is base
    expected = torch.tensor(outer)[torch.tensor(inner)]
    assert torch.equal(nested.targets, TARGETS[expected])
    assert torch.equal(nested.fetch(torch.arange(len(inner))).inputs, INPUTS[expected])


@pytest.mark.parametrize(
    "index", [torch.tensor([10]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([[0]])]
)
def test_a_subset_of_rows_that_are_not_there_is_refused(index):
    with pytest.raises(PreconditionError, match=r"index (spans|must be)"):
        SubsetExamples(TensorExamples(INPUTS, TARGETS), index)


def test_an_empty_subset_is_possible():
    assert (
        len(SubsetExamples(TensorExamples(INPUTS, TARGETS), torch.empty(0, dtype=torch.int64)).targets) == 0
    )


def test_dicts_and_tuples_are_taken_row_by_row():
    inputs = {"ids": torch.arange(6).reshape(3, 2), "mask": torch.ones(3)}
    examples = TensorExamples(inputs, torch.tensor([0, 1, 0]))
    batch = examples.fetch(torch.tensor([2, 0]))
    assert batch.inputs["ids"].tolist() == [[4, 5], [0, 1]]
    pair = take_rows((inputs["ids"], inputs["mask"]), torch.tensor([1]))
    assert isinstance(pair, tuple)
    assert num_rows(pair) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, "{'a': 2, 'b': 3}"),
        ((), "no tensor"),
        ({"a": torch.tensor(1.0)}, r"inputs\['a'\] is a single number"),
    ],
)
def test_inputs_without_common_rows_are_refused(inputs, message):
    with pytest.raises(DataError, match=message):
        num_rows(inputs)


def test_inputs_and_targets_of_different_length_are_refused():
    with pytest.raises(DataError, match="inputs have 10 rows and targets 9"):
        TensorExamples(INPUTS, TARGETS[:9])


def test_targets_keep_to_two_types():
    assert TensorExamples(INPUTS, TARGETS.to(torch.uint8)).targets.dtype == torch.int64
    assert TensorExamples(INPUTS, TARGETS.bool()).targets.dtype == torch.int64
    assert TensorExamples(INPUTS, torch.rand(10, dtype=torch.float64)).targets.dtype == torch.float32
    assert TensorExamples(INPUTS, TARGETS.unsqueeze(1)).targets.shape == (10,)


@pytest.mark.parametrize(
    "targets", [torch.zeros(10, 3), torch.zeros(10, 1, 1), torch.zeros(10, dtype=torch.cfloat)]
)
def test_targets_that_are_not_one_number_per_row_are_refused(targets):
    with pytest.raises(DataError, match=r"one target per row|real numbers"):
        TensorExamples(INPUTS, targets)


class Noisy(Rows):
    """A dataset with a random transform."""

    def __getitem__(self, row):
        inputs, target = super().__getitem__(row)
        return inputs + torch.rand(1), target


def test_targets_of_a_dataset_are_read_once_and_the_callers_streams_do_not_move():
    rows = Noisy([(torch.zeros(1), row % 2) for row in range(5)])
    examples = MapExamples(rows)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert examples.targets.tolist() == [0, 1, 0, 1, 0]
    assert examples.targets is examples.targets
    assert rows.reads == 5
    assert torch.equal(torch.rand(1), expected)


def test_a_regression_dataset_has_float_targets_and_an_empty_one_none():
    assert MapExamples(Rows([(torch.rand(1), 2)]), task="regression").targets.dtype == torch.float32
    empty = MapExamples(Rows([]))
    assert len(empty) == 0
    assert empty.targets.dtype == torch.int64
    assert len(empty.targets) == 0


def test_changing_the_task_keeps_what_was_read():
    rows = Rows([(torch.rand(1), float(row)) for row in range(4)])
    examples = MapExamples(rows, task="regression")
    assert examples.targets.dtype == torch.float32
    as_classes = examples.with_task("classification")
    assert as_classes.targets.tolist() == [0, 1, 2, 3]
    assert rows.reads == 4
    assert as_classes.fetch(torch.tensor([1])).targets.dtype == torch.int64
    assert examples.with_task("regression") is examples


def test_items_that_are_dicts_or_have_two_inputs():
    dicts = MapExamples(Rows([{"ids": torch.tensor([row]), "labels": row} for row in range(3)]))
    assert dicts.fetch(torch.tensor([2])).inputs["ids"].tolist() == [[2]]
    assert dicts.targets.tolist() == [0, 1, 2]
    pairs = MapExamples(Rows([(torch.tensor([row]), torch.tensor([row, row]), row) for row in range(3)]))
    first, second = pairs.fetch(torch.tensor([1])).inputs
    assert (first.tolist(), second.tolist()) == ([[1]], [[1, 1]])


def test_a_collate_function_is_used():
    def pad(items):
        longest = max(len(ids) for ids, _ in items)
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in items])
        return {"input_ids": ids, "labels": torch.tensor([label for _, label in items])}

    examples = MapExamples(Rows([([1], 0), ([2, 3], 1)]), pad)
    assert examples.fetch(torch.tensor([0, 1])).inputs["input_ids"].tolist() == [[1, 0], [2, 3]]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(2)}, "'labels' or 'label'; it has \\['x'\\]"),
        (torch.zeros(2), "type Tensor holds no targets"),
        ((torch.zeros(2),), "type tuple holds no targets"),
        (("text", torch.zeros(2)), "entry '0' is a str, not a tensor"),
        ((torch.zeros(2), [1, 2]), "entry 'targets' is a list"),
    ],
)
def test_batches_without_inputs_and_targets_are_refused(batch, message):
    with pytest.raises(DataError, match=message):
        split_batch(batch, task="classification")


def test_a_dict_of_inputs_beside_targets():
    batch = split_batch(({"a": torch.zeros(2)}, torch.tensor([0, 1])), task="classification")
    assert list(batch.inputs) == ["a"]


def test_items_that_do_not_stack_are_refused():
    examples = MapExamples(Rows([(torch.zeros(2), 0), (torch.zeros(3), 1)]))
    with pytest.raises(DataError, match=r"items of Rows do not form a batch: .*; give a collate_fn"):
        examples.fetch(torch.tensor([0, 1]))


def test_something_that_is_no_dataset_is_refused():
    with pytest.raises(DataError, match="int has no __len__"):
        MapExamples(3)


def test_encoded_rows_are_decoded_only_when_chosen_and_once():
    asked = []

    def decode(index):
        asked.append(index.tolist())
        return INPUTS[index]

    encoded = EncodedExamples(TARGETS, decode)
    chosen = SubsetExamples(encoded, torch.tensor([7, 2]))
    plain = TensorExamples(INPUTS, TARGETS)
    assert chosen.targets.tolist() == [1, 2]
    assert asked == []
    assert [is_encoded(part) for part in (encoded, chosen, plain)] == [True, True, False]
    first, second, third = decode_parts([chosen, plain, encoded])
    assert isinstance(first, TensorExamples)
    assert torch.equal(first.inputs, INPUTS[[7, 2]])
    assert second is plain
    assert len(third) == 10
    assert asked == [[7, 2], list(range(10))]


def test_grey_parts_get_three_channels_beside_coloured_ones():
    def images(channels):
        pixels = torch.randint(0, 256, (10, channels, 2, 2), dtype=torch.uint8)
        return EncodedExamples(TARGETS, lambda index: pixels[index])

    grey, colour, also_grey = images(1), images(3), images(1)
    first, second, third = decode_parts([grey, colour, also_grey])
    assert first.inputs.shape == second.inputs.shape == third.inputs.shape == (10, 3, 2, 2)
    assert torch.equal(first.inputs[:, 2], grey.fetch(torch.arange(10)).inputs[:, 0])
    assert decode_parts([grey])[0].inputs.shape == (10, 1, 2, 2)
