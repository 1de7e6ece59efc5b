"""Schemas, and the refusals of what cannot be trained on."""

from __future__ import annotations

import json

import pytest
import torch

from hqde.data import MapExamples, Schema, SubsetExamples, TensorExamples, infer_schema
from hqde.errors import ConfigError, DataError

NAN, INF = float("nan"), float("inf")


def classified(inputs, labels=None, **options):
    rows = len(inputs)
    targets = torch.arange(rows) % 2 if labels is None else torch.tensor(labels)
    return infer_schema(TensorExamples(inputs, targets), task="classification", **options)


@pytest.mark.parametrize(
    ("inputs", "kind", "shape"),
    [
        (torch.zeros(4, 3, 5, 5, dtype=torch.uint8), "image", (3, 5, 5)),
        (torch.zeros(4, 7), "tabular", (7,)),
        (torch.zeros(4, 7, 2), "other", (7, 2)),
        (torch.zeros(4), "other", ()),
    ],
)
def test_kind_and_shape(inputs, kind, shape):
    assert classified(inputs) == Schema("classification", kind, ("0", "1"), shape)


def test_dicts_and_tuples_have_no_single_shape():
    for inputs in ({"a": torch.zeros(4, 2)}, (torch.zeros(4, 2),)):
        schema = infer_schema(TensorExamples(inputs, torch.tensor([0, 1, 0, 1])), task="classification")
        assert (schema.kind, schema.input_shape) == ("other", None)


def test_gaps_in_the_labels_are_kept_and_names_are_taken():
    assert classified(torch.zeros(3, 1), [0, 3, 3]).classes == ("0", "1", "2", "3")
    assert classified(torch.zeros(2, 1), [0, 1], classes=["a", "b", "c"]).num_classes == 3


def test_regression_has_no_classes():
    schema = infer_schema(TensorExamples(torch.zeros(3, 1), torch.rand(3)), task="regression")
    assert (schema.classes, schema.num_classes) == ((), 0)


@pytest.mark.parametrize(
    "schema",
    [
        Schema("classification", "image", ("cat", "dog"), (3, 2, 2)),
        Schema("regression", "tabular", (), (4,)),
        Schema("classification", "other", ("0", "1"), None),
    ],
)
def test_a_trip_through_json(schema):
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, -2], r"2 of 4 are negative \(first: -1 in row 2\)"),
        ([0, 1, 5000, 1], r"label 5000 in row 2 would make 5001 classes of 4 rows"),
        ([1, 1, 1, 1], "only one class: all 4 labels are 1"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        classified(torch.zeros(4, 1), labels)


def test_labels_beyond_the_named_classes_are_refused():
    with pytest.raises(DataError, match=r"1 of 4 are beyond the 2 classes 0 to 1 \(first: 2 in row 3\)"):
        classified(torch.zeros(4, 1), [0, 1, 1, 2], classes=("a", "b"))


def test_many_classes_of_many_rows_are_fine():
    assert classified(torch.zeros(1500, 1), list(range(1500))).num_classes == 1500


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_inputs_that_are_not_finite_are_refused_with_count_and_first_row(bad):
    inputs = torch.zeros(5000, 2)
    inputs[2100, 1] = bad
    inputs[4999] = bad
    whole = TensorExamples(inputs, torch.arange(5000) % 2)
    for examples in (whole, SubsetExamples(whole, torch.arange(5000))):
        with pytest.raises(
            DataError, match=r"2 of 5000 rows have NaN or infinite inputs \(first: row 2100\)"
        ):
            infer_schema(examples, task="classification")


def test_every_tensor_of_a_dict_is_checked():
    inputs = {"ids": torch.zeros(3, dtype=torch.int64), "x": torch.tensor([0.0, NAN, 0.0])}
    with pytest.raises(DataError, match=r"1 of 3 rows .* row 1"):
        infer_schema(TensorExamples(inputs, torch.tensor([0, 1, 0])), task="classification")


def test_targets_that_are_not_finite_are_refused_with_count_and_first_row():
    examples = TensorExamples(torch.zeros(4, 1), torch.tensor([0.5, NAN, INF, 1.0]))
    with pytest.raises(DataError, match=r"2 of 4 targets are NaN or infinite \(first: row 1\)"):
        infer_schema(examples, task="regression")


def test_targets_of_the_wrong_type_are_refused():
    with pytest.raises(DataError, match=r"float32; pass them through as_examples"):
        infer_schema(TensorExamples(torch.zeros(2, 1), torch.tensor([0.0, 1.0])), task="classification")
    with pytest.raises(DataError, match=r"int64; pass them through as_examples"):
        infer_schema(TensorExamples(torch.zeros(2, 1), torch.tensor([0, 1])), task="regression")


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="empty: 0 rows"):
        infer_schema(
            TensorExamples(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), task="classification"
        )


def test_rows_that_change_shape_are_refused():
    class Growing:
        def __len__(self):
            return 3000

        def __getitem__(self, row):
            return torch.zeros(2 if row < 2048 else 3), row % 2

    with pytest.raises(DataError, match=r"rows differ in shape: \[\(2,\), \(3,\)\]"):
        infer_schema(MapExamples(Growing()), task="classification")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("classify", "image", ("a", "b"), None), "task is 'classify'"),
        (("classification", "sound", ("a", "b"), None), "kind is 'sound'"),
        (("classification", "image", ("a",), None), "at least 2 classes, not 1"),
        (("regression", "image", ("a", "b"), None), "regression has no classes, but 2"),
    ],
)
def test_impossible_schemas_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Schema(*values)
