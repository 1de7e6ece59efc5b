"""Arrays in .npz files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hqde.data import load_splits
from hqde.data.readers.npz import read_npz
from hqde.errors import ConfigError, DataError

X = np.random.default_rng(0).normal(size=(40, 3))
Y = np.arange(40) % 4


@pytest.mark.parametrize(
    "names", [("x", "y"), ("X", "y"), ("data", "labels"), ("images", "label"), ("X_train", "Y_train")]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_pair_of_arrays(tmp_path, names, save):
    save(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)))
    source = read_npz(tmp_path / "a.npz")
    rows = source.train.fetch(torch.arange(40))
    assert np.array_equal(rows.inputs.numpy(), X.astype(np.float32))
    assert rows.targets.tolist() == Y.tolist()
    assert (source.name, source.task, source.test, source.classes) == ("a", "classification", None, None)


def test_training_and_test_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:8], y_test=Y[:8])
    splits = load_splits(str(tmp_path / "a.npz"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 4, 8)
    assert splits.schema.input_shape == (3,)


def test_words_are_classes_and_the_same_in_both_parts(tmp_path):
    train, test = np.array(["dog", "cat"] * 10), np.array(["dog"] * 4)
    np.savez(tmp_path / "a.npz", x_train=X[:20], y_train=train, x_test=X[:4], y_test=test)
    source = read_npz(tmp_path / "a.npz")
    assert source.classes == ("cat", "dog")
    assert source.test.targets.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("targets", "task", "found"),
    [
        (Y, None, "classification"),
        (Y.astype(float), None, "classification"),
        (Y / 2, None, "regression"),
        (Y, "regression", "regression"),
        (Y[:, None], None, "classification"),
    ],
)
def test_the_task_is_what_the_targets_say_unless_told(tmp_path, targets, task, found):
    np.savez(tmp_path / "a.npz", x=X, y=targets)
    splits = load_splits(str(tmp_path / "a.npz"), task=task)
    assert splits.schema.task == found
    assert splits.train.targets.dtype == (torch.float32 if found == "regression" else torch.int64)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((40, 8, 6), np.uint8, (1, 8, 6)),
        ((40, 8, 6, 3), np.uint8, (3, 8, 6)),
        ((40, 3, 8, 6), np.uint8, (3, 8, 6)),
        ((40, 3, 8, 6), np.int64, (3, 8, 6)),
        ((40, 8, 6, 1), np.float64, (1, 8, 6)),
        ((40, 8, 6), np.float32, (8, 6)),
        ((40, 5), np.uint8, (5,)),
    ],
)
def test_images_get_their_channels_first_and_stay_bytes(tmp_path, shape, dtype, expected):
    values = np.random.default_rng(0).integers(0, 256, size=shape).astype(dtype)
    np.savez(tmp_path / "a.npz", x=values, y=Y)
    splits = load_splits(str(tmp_path / "a.npz"))
    assert splits.schema.input_shape == expected
    inputs = splits.train.fetch(torch.tensor([0])).inputs
    whole = len(expected) == 3 and dtype != np.float64
    assert inputs.dtype == (torch.uint8 if whole else torch.float32)


def test_pixel_values_keep_their_places(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, size=(40, 5, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=values, y=Y)
    inputs = read_npz(tmp_path / "a.npz").train.fetch(torch.arange(40)).inputs
    assert np.array_equal(inputs.numpy(), values.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_file_is_refused_with_both_numbers(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x=X, y=Y)
    content = path.read_bytes()
    for size in [4, 25, 100, 800, len(content) - 300, len(content) - 30, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(
            DataError, match=r"is truncated or damaged \(expected at least (\d+) bytes, found"
        ) as caught:
            read_npz(path)
        words = str(caught.value).split()
        expected, found = int(words[words.index("least") + 1]), size
        assert found < expected <= len(content)
        assert f"found {size})" in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[400] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"truncated or damaged .*CRC") as caught:
        read_npz(path)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X, "b": Y}, r"no array 'x' among \['a', 'b'\]"),
        ({"x": X}, "no array 'y'"),
        ({"x": X, "data": X, "y": Y}, r"more than one of \['x', 'data'\]"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "no array 'y_test'"),
        ({"x": X, "y": Y[:39]}, r"'x' \(40, 3\) and 'y' \(39,\)"),
        ({"x": X, "y": np.array(3)}, r"'y' \(\)"),
        ({"x": X[:, 0], "y": Y}, r"shape \(40,\); inputs need rows"),
        ({"x": X.astype(str), "y": Y}, "not numbers"),
        ({"x": X, "y": np.eye(40)}, "one target per row"),
        ({"x": X, "y": Y.astype(complex)}, "complex128; targets must be numbers or words"),
        (
            {"x": X, "y": np.where(Y == 3, np.nan, Y)},
            r"10 of 40 targets are NaN or infinite \(first: row 3\)",
        ),
        ({"x": np.where(X > 2, np.inf, X), "y": Y}, "training data: .* NaN or infinite inputs"),
        ({"x": X, "y": Y * 0}, "only one class: all 40 labels are 0"),
        ({"x": X, "y": Y - 1}, r"labels out of range: 10 of 40 are negative \(first: -1 in row 0\)"),
        ({"x": X[:0], "y": Y[:0]}, "empty: 0 rows"),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2] + 7},
            "test data: .*beyond the 4 classes 0 to 3",
        ),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:2, :2], "y_test": Y[:2]},
            r"shape \(3,\) but test rows \(2,\)",
        ),
        ({"x": np.array([{"a": 1}] * 40), "y": Y}, "plain numbers or words: .*; save it without objects"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_splits(str(tmp_path / "a.npz"))


def test_fractions_where_classes_are_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y / 2)
    with pytest.raises(
        DataError, match=r"20 of 40 class labels are not whole numbers \(first: 0.5 in row 1\)"
    ):
        load_splits(str(tmp_path / "a.npz"), task="classification")
    np.savez(tmp_path / "a.npz", x=X, y=Y.astype(str))
    with pytest.raises(DataError, match="words such as '0'; regression needs numbers"):
        load_splits(str(tmp_path / "a.npz"), task="regression")


def test_something_else_under_that_name_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"hello there")
    with pytest.raises(DataError, match="begins with b'hell', expected b'PK'"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(DataError, match="is a folder where a file is needed"):
        read_npz(tmp_path / "b.npz")
    with pytest.raises(DataError, match=r"no such file: .*c\.npz; .* holds a\.npz, b\.npz"):
        read_npz(tmp_path / "c.npz")


def test_a_column_cannot_be_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(ConfigError, match=r"names a column of a table, but .*a\.npz' is none"):
        load_splits(str(tmp_path / "a.npz"), target="y")
