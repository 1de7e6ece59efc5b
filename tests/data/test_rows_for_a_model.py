"""Rows for a model that is trained already: matched with what it knows."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch

from hqde.data import Schema, load_inputs, load_rows, load_splits
from hqde.data.readers.cifar10 import CIFAR10_CLASSES
from hqde.errors import ConfigError, DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

PETS = Schema("classification", "tabular", ("bird", "cat", "dog"), (2,))
PRICES = Schema("regression", "tabular", (), (2,))
THREE = Schema("classification", "tabular", ("0", "1", "2"), (2,))
GREY = Schema("classification", "image", ("cat", "dog"), (1, 2, 2))
COLOUR = Schema("classification", "image", ("cat", "dog"), (3, 2, 2))


def written(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def targets_of(rows):
    return rows.fetch(torch.arange(len(rows))).targets.tolist()


def test_digits_give_their_test_rows():
    splits = load_splits("digits")
    rows, inputs = load_rows("digits", schema=splits.schema), load_inputs("digits", schema=splits.schema)
    expected = splits.test.fetch(torch.arange(len(splits.test)))
    assert torch.equal(inputs, expected.inputs)
    assert torch.equal(rows.targets, expected.targets)


def test_class_names_are_matched_even_if_some_are_missing(tmp_path):
    source = written(tmp_path, "a,b,kind\n1,2,dog\n3,4,bird\n5,6,dog\n")
    rows = load_rows(source, schema=PETS)
    assert rows.targets.tolist() == targets_of(rows) == [2, 0, 2]
    assert load_rows(written(tmp_path, "a,b,kind\n1,2,dog\n"), schema=PETS).targets.tolist() == [2]


def test_class_ids_are_taken_as_they_are(tmp_path):
    assert load_rows(written(tmp_path, "a,b,y\n1,2,2\n"), schema=THREE).targets.tolist() == [2]


def test_regression_targets_stay_numbers(tmp_path):
    rows = load_rows(written(tmp_path, "a,b,y\n1,2,3\n4,5,6\n"), schema=PRICES)
    assert rows.targets.dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "schema", "message"),
    [
        ("a,b,kind\n1,2,dog\n1,2,cow\n", PETS, "1 classes that the model does not know, first .cow."),
        ("a,b,y\n1,2,3\n", THREE, "1 of 1 are beyond the 3 classes 0 to 2"),
        ("a,b,c,y\n1,2,3,0\n", THREE, r"rows have shape \(3,\), but the model was trained on \(2,\)"),
        ("a,b,y\n1,2,0.5\n", THREE, "not whole numbers"),
        ("a,b,y\n1,2,x\n", PRICES, "words such as 'x'"),
        ("a,b,y\n1,,0\n", THREE, r"column 'b': 1 of 1 values are missing"),
    ],
)  # fmt: skip
def test_labelled_rows_that_do_not_fit_are_refused(tmp_path, text, schema, message):
    with pytest.raises(DataError, match=message):
        load_rows(written(tmp_path, text), schema=schema)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("a,b\n1,2\n3,4\n", None),
        ("1,2\n3,4\n", None),
        ("a,b,y\n1,2,0\n3,4,1\n", None),
        ("y,a,b\nx,1,2\nnone at all,3,4\n", None),
        ("a,z,b\n1,,2\n3,x,4\n", "z"),
        ("a,b\n1,2\n3,4\n", "y"),
    ],
)
def test_a_table_to_predict_may_have_its_target_or_not(tmp_path, text, target):
    inputs = load_inputs(written(tmp_path, text), schema=THREE, target=target)
    assert inputs.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    header, *lines = text.split()
    if header[0].isalpha() and "none" not in text and ",," not in text:
        columns = [[float(cell) if cell[0].isdigit() else cell for cell in column]
                   for column in zip(*(line.split(",") for line in lines), strict=True)]  # fmt: skip
        parquet.write_table(
            pyarrow.table(dict(zip(header.split(","), columns, strict=True))), tmp_path / "t.parquet"
        )
        inputs = load_inputs(str(tmp_path / "t.parquet"), schema=THREE, target=target)
        assert inputs.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(("text", "count"), [("a\n1\n2\n", 1), ("a,b,c,d\n1,2,3,4\n", 4)])
def test_a_table_of_another_width_is_refused(tmp_path, text, count):
    message = f"has {count} feature columns, but the model was trained on 2"
    with pytest.raises(DataError, match=message):
        load_inputs(written(tmp_path, text), schema=THREE)


def test_arrays_to_predict_need_no_targets_and_a_test_part_comes_first(tmp_path):
    path = tmp_path / "a.npz"
    values = np.arange(8.0).reshape(4, 2)
    np.savez(path, x=values)
    assert load_inputs(str(path), schema=THREE).tolist() == values.tolist()
    np.savez(path, x_train=values, x_test=values[:1], y_test=np.array([0]), y_train=np.arange(4))
    assert load_inputs(str(path), schema=THREE).tolist() == values[:1].tolist()
    np.savez(path, x=np.where(values == 5, np.nan, values))
    with pytest.raises(DataError, match=r"a\.npz: 1 of 4 rows have NaN or infinite inputs \(first: row 2\)"):
        load_inputs(str(path), schema=THREE)
    np.savez(path, x=values[:0])
    with pytest.raises(DataError, match="is empty: 0 rows"):
        load_inputs(str(path), schema=THREE)
    np.savez(path, x=values[:0], y=np.arange(0))
    with pytest.raises(DataError, match="is empty: 0 rows"):
        load_rows(str(path), schema=THREE)
    np.savez(path, x=np.zeros((3, 5)))
    with pytest.raises(DataError, match=r"rows have shape \(5,\), but the model was trained on \(2,\)"):
        load_inputs(str(path), schema=THREE)


def png(path_or_stream, value, mode="L"):
    Image.new(mode, (2, 2), value).save(path_or_stream, "PNG")


def test_a_folder_of_images_with_and_without_classes(tmp_path):
    for name, value in (("b.png", 2), ("a.png", 1), ("c.png", 3)):
        png(tmp_path / name, value)
    inputs = load_inputs(str(tmp_path), schema=GREY)
    assert inputs[:, 0, 0, 0].tolist() == [1, 2, 3]
    coloured = load_inputs(str(tmp_path), schema=COLOUR)  # grey pictures for a model of coloured ones
    assert coloured.shape == (3, 3, 2, 2)
    assert coloured[1].unique().tolist() == [2]
    (tmp_path / "new" / "dog").mkdir(parents=True)
    png(tmp_path / "new" / "dog" / "1.png", 7)
    assert load_inputs(str(tmp_path / "new"), schema=GREY)[:, 0, 0, 0].tolist() == [7]
    assert load_rows(str(tmp_path / "new"), schema=GREY).targets.tolist() == [1]
    assert load_rows(str(tmp_path / "new"), schema=COLOUR).fetch(torch.tensor([0])).inputs.shape == (
        1,
        3,
        2,
        2,
    )
    png(tmp_path / "new" / "dog" / "2.png", (1, 2, 3), mode="RGB")
    with pytest.raises(DataError, match=r"shape \(3, 2, 2\), but the model was trained on \(1, 2, 2\)"):
        load_rows(str(tmp_path / "new"), schema=GREY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_inputs(str(tmp_path / "empty"), schema=GREY)


def test_a_folder_with_parts_gives_the_test_part(tmp_path):
    for part, value in (("train", 1), ("test", 9)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            png(tmp_path / part / name / "1.png", value)
    assert load_inputs(str(tmp_path), schema=GREY).unique().tolist() == [9]
    rows = load_rows(str(tmp_path), schema=GREY)
    assert rows.fetch(torch.arange(2)).inputs.unique().tolist() == [9]


def test_images_in_parquet_to_predict(tmp_path):
    stream = io.BytesIO()
    png(stream, 5)
    image = {"bytes": stream.getvalue(), "path": "x"}
    parquet.write_table(pyarrow.table({"img": [image, image]}), tmp_path / "t.parquet")
    assert load_inputs(str(tmp_path / "t.parquet"), schema=GREY).shape == (2, 1, 2, 2)


def test_what_a_function_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker.py").write_text(
        "import numpy as np\n"
        "def array(): return np.ones((3, 2), dtype=np.float32)\n"
        "def labelled(): return np.ones((3, 2)), np.array([0, 1, 1])\n"
        "def parts(): return (np.ones((3, 2)), np.array([0, 1, 1])), (np.zeros((1, 2)), np.array([0]))\n"
        "def named(): return {'a': np.ones((3, 2)), 'b': np.arange(3)}\n"
    )
    try:
        for name in ("array", "labelled"):
            assert load_inputs(f"maker:{name}", schema=THREE).shape == (3, 2)
        assert load_inputs("maker:parts", schema=THREE).tolist() == [[0.0, 0.0]]
        named = Schema("classification", "other", ("0", "1", "2"), None)
        assert sorted(load_inputs("maker:named", schema=named)) == ["a", "b"]
        assert load_rows("maker:labelled", schema=THREE).targets.tolist() == [0, 1, 1]
    finally:
        sys.modules.pop("maker", None)


def test_a_named_set_gives_its_test_part(tmp_path):
    for part, value in (("train", 1), ("test", 9)):
        stream = io.BytesIO()
        png(stream, value)
        rows = [{"bytes": stream.getvalue(), "path": "x"}] * 2
        parquet.write_table(pyarrow.table({"img": rows, "label": [0, 1]}), tmp_path / f"{part}.parquet")
    schema = Schema("classification", "image", CIFAR10_CLASSES, (1, 2, 2))
    assert load_inputs(f"cifar10:{tmp_path}", schema=schema).unique().tolist() == [9]
    assert load_rows(f"cifar10:{tmp_path}", schema=schema).targets.tolist() == [0, 1]


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="target='y' names a column"):
        load_inputs("digits", schema=load_splits("digits").schema, target="y")
    with pytest.raises(ConfigError, match="holds classes"):
        load_rows("digits", schema=PRICES)
    with pytest.raises(DataError, match="unknown data set 'digit'; did you mean 'digits'"):
        load_inputs("digit", schema=PRICES)
