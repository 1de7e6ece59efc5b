"""From a name to splits: the grammar, what is held out, what does not fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.data import Normalization, TensorExamples, load_splits, make_splits
from hqde.errors import ConfigError, DataError, MissingExtraError


def rows_of(examples):
    return examples.fetch(torch.arange(len(examples)))


def test_digits_are_grey_bytes():
    splits = load_splits("digits")
    assert splits.name == "digits"
    assert splits.schema.to_dict() == {
        "task": "classification", "kind": "image", "classes": list("0123456789"), "input_shape": [1, 8, 8],
    }  # fmt: skip
    rows = rows_of(splits.train)
    assert rows.inputs.dtype == torch.uint8
    assert int(rows.inputs.max()) == 16
    assert Normalization.fit(splits.train, splits.schema).mean.item() == pytest.approx(4.88, abs=0.02)


def test_parts_are_disjoint_and_stratified():
    splits = load_splits("digits")
    rows = [
        rows_of(part).inputs.flatten(1).numpy() for part in (splits.train, splits.validation, splits.test)
    ]
    together = {tuple(row) for part in rows for row in part.tolist()}
    assert len(together) == sum(len(part) for part in rows) == 1797  # all digits differ
    for part in (splits.train, splits.validation, splits.test):
        shares = torch.bincount(part.targets) / len(part)
        assert (shares - 0.1).abs().max() < 0.01


def test_the_same_arguments_give_the_same_rows_and_the_seed_other_ones():
    torch.manual_seed(1)
    first = load_splits("digits")
    torch.manual_seed(2)
    again, other = load_splits("digits"), load_splits("digits", split_seed=1)
    for part in ("train", "validation", "test"):
        assert torch.equal(rows_of(getattr(first, part)).inputs, rows_of(getattr(again, part)).inputs)
        assert not torch.equal(rows_of(getattr(first, part)).inputs, rows_of(getattr(other, part)).inputs)


def keyed(num_rows):
    """Rows that carry their own number."""
    return TensorExamples(torch.arange(float(num_rows)).unsqueeze(1), torch.arange(num_rows) % 3)


def numbers(examples):
    return set(rows_of(examples).inputs[:, 0].int().tolist())


@settings(deadline=None, max_examples=50)
@given(
    num_rows=st.integers(40, 300), max_train=st.integers(20, 400), validation=st.floats(0.1, 0.5),
    test=st.floats(0.1, 0.5), seed=st.integers(0, 9),
)  # fmt: skip
def test_no_row_is_in_two_parts_and_max_train_is_kept(num_rows, max_train, validation, test, seed):
    splits = make_splits("k", keyed(num_rows), task="classification", validation_fraction=validation,
                         test_fraction=test, split_seed=seed, max_train=max_train)  # fmt: skip
    train, held, tested = numbers(splits.train), numbers(splits.validation), numbers(splits.test)
    assert not train & held
    assert not train & tested
    assert not held & tested
    assert len(train) + len(held) == min(max_train, num_rows - len(tested))
    assert len(tested) == int(test * num_rows + 0.5)


def test_max_train_does_not_change_the_test_rows_and_grows_by_nesting():
    whole = make_splits("k", keyed(200), task="classification")
    small = make_splits("k", keyed(200), task="classification", max_train=50)
    large = make_splits("k", keyed(200), task="classification", max_train=100)
    assert numbers(whole.test) == numbers(small.test)
    kept = [numbers(splits.train) | numbers(splits.validation) for splits in (small, large, whole)]
    assert kept[0] < kept[1] < kept[2]


def test_a_given_test_part_is_left_alone():
    splits = make_splits("k", keyed(50), test=keyed(7), task="classification", test_fraction=0.5)
    assert numbers(splits.test) == set(range(7))
    assert len(splits.train) + len(splits.validation) == 50


def test_classes_that_training_lost_are_refused():
    rare = TensorExamples(torch.zeros(10_000, 1), torch.tensor([0, 1] * 4999 + [2, 2]))
    test = TensorExamples(torch.zeros(3, 1), torch.tensor([0, 1, 2]))
    with pytest.raises(
        DataError,
        match=r"1 classes of the test data never occur in the \d+ training rows \(first: '2'",
    ):
        make_splits("k", rare, test=test, task="classification", max_train=10)


def test_rare_classes_stay_in_training():
    examples = TensorExamples(torch.zeros(60, 1), torch.tensor([0, 1] * 29 + [2, 3]))
    splits = make_splits("k", examples, task="classification")
    assert set(splits.train.targets.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction must be above 0 and below 1, not 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must be above 0 and below 1, not 1.0"),
        ({"validation_fraction": float("nan")}, "validation_fraction"),
        ({"max_train": 1}, "max_train must be at least 2 rows, not 1"),
        ({"task": "clustering"}, "task is 'clustering'"),
        ({"task": "regression"}, "task='regression' does not fit 'digits', which holds classes"),
        ({"target": "y"}, "target='y' names a column of a table, but 'digits' is none"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_splits("digits", **settings)


def test_too_few_rows_for_validation_are_refused():
    with pytest.raises(
        DataError, match=r"too few samples for a validation split: .*=0.1 of 4 rows is 0, .* at least 5 rows"
    ):
        load_splits("digits", max_train=4)


def test_one_class_left_after_max_train_is_refused():
    examples = TensorExamples(torch.zeros(10_000, 1), torch.tensor([0] * 9998 + [1] * 2))
    test = TensorExamples(torch.zeros(3, 1), torch.tensor([0, 0, 0]))
    with pytest.raises(DataError, match="only one class: all 2 labels are 0"):
        make_splits("k", examples, test=test, task="classification", max_train=3, validation_fraction=0.3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digitz", "unknown data set 'digitz'; did you mean 'digits'"),
        ("fashion_mnist:/x", "unknown data set 'fashion_mnist:/x'; did you mean 'fashion-mnist'"),
        ("cifar-10:/x", "did you mean 'cifar10'"),
        ("imagenet", "unknown data set 'imagenet'; use cifar10, digits, fashion-mnist, a .npz"),
        ("", "unknown data set ''"),
        ("cifar10", "'cifar10' needs the folder of its files; write cifar10:DIR"),
        ("fashion-mnist:", "write fashion-mnist:DIR"),
        ("cifar10:/no/where", "no such folder: /no/where"),
        ("/no/where", "no such folder: /no/where"),
        ("./nowhere", "no such folder: nowhere"),
        ("/no/where.csv", "no such file: /no/where.csv"),
        ("/no/where.CSV", "no such file"),
        ("/no/where.npz", "no such file: /no/where.npz"),
        ("/no/where.parquet", "no such file: /no/where.parquet"),
    ],
)
def test_sources_that_are_not_there_are_refused(source, message):
    with pytest.raises(DataError, match=message):
        load_splits(source)


@pytest.mark.parametrize("source", ["cifar10:{}", "fashion-mnist:{}"])
def test_a_file_where_a_folder_is_needed(tmp_path, source):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file where a folder is needed"):
        load_splits(source.format(tmp_path / "file"))


def test_a_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "rows.xlsx").touch()
    with pytest.raises(DataError, match="is a file where a folder is needed"):
        load_splits(str(tmp_path / "rows.xlsx"))


@pytest.mark.parametrize(("module", "source"), [("pyarrow", "{}/t.parquet"), ("PIL", "{}/pets")])
def test_missing_extras_say_what_to_install(tmp_path, monkeypatch, module, source):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "1.png").touch()
    (tmp_path / "pets" / "dog").mkdir()
    for number in range(9):
        (tmp_path / "pets" / "dog" / f"{number}.png").touch()
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hqde\[data\]'"):
        load_splits(source.format(tmp_path))


def test_importing_the_room_needs_no_extra(tmp_path):
    import subprocess

    code = (
        "import sys; sys.modules['pyarrow'] = sys.modules['PIL'] = None; "
        "import hqde.data; print(len(hqde.data.load_splits('digits').test))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["359"]


def test_targets_with_holes_and_inputs_with_holes_name_the_row_of_the_source():
    inputs = torch.zeros(100, 2)
    inputs[61, 0] = float("nan")
    with pytest.raises(DataError, match=r"training data: 1 of 100 rows have NaN .*\(first: row 61\)"):
        make_splits("k", TensorExamples(inputs, torch.arange(100) % 2), task="classification")
    targets = torch.rand(100)
    targets[[7, 9]] = float("inf")
    with pytest.raises(DataError, match=r"training data: 2 of 100 targets .*\(first: row 7\)"):
        make_splits("k", TensorExamples(torch.zeros(100, 2), targets), task="regression")
    with pytest.raises(DataError, match=r"test data: 1 of 100 rows have NaN"):
        make_splits(
            "k", keyed(100), test=TensorExamples(inputs, torch.arange(100) % 2), task="classification"
        )


def test_an_empty_test_part_is_refused():
    empty = TensorExamples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="the test data are empty"):
        make_splits("k", keyed(20), test=empty, task="classification")


def test_regression_is_split_without_classes():
    examples = TensorExamples(torch.rand(100, 2), torch.from_numpy(np.random.default_rng(0).random(100)))
    splits = make_splits("k", examples, task="regression")
    assert splits.schema.classes == ()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (72, 8, 20)
