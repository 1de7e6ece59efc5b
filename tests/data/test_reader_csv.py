"""Tables of text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.data import load_splits
from hqde.data.readers.table_csv import read_csv
from hqde.errors import DataError


def written(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(source):
    return source.train.fetch(torch.arange(len(source.train)))


FLOWERS = "length,width,kind\n5.1,3.5,setosa\n7,3.2,virginica\n4.9,3,setosa\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_header_numbers_and_words(tmp_path, delimiter):
    source = read_csv(written(tmp_path, FLOWERS.replace(",", delimiter)))
    assert source.classes == ("setosa", "virginica")
    assert rows_of(source).targets.tolist() == [0, 1, 0]
    assert np.allclose(rows_of(source).inputs.numpy(), [[5.1, 3.5], [7, 3.2], [4.9, 3]])
    assert rows_of(source).inputs.dtype == torch.float32
    assert source.name == "t"


@pytest.mark.parametrize(
    "text",
    [
        "5.1,3.5,setosa\n7,3.2,virginica\n4.9,3,setosa\n",  # no header: the first line has numbers
        "\ufeff" + FLOWERS,  # a byte order mark
        FLOWERS.replace("\n", "\r\n"),
        "\n" + FLOWERS.replace("setosa\n", "setosa\n\n") + "\n , ,\n",  # blank lines
        'length,"wi,dth",kind\n5.1,3.5,"setosa"\n"7",3.2,virginica\n 4.9 , 3 , setosa \n',
        FLOWERS.replace("kind", "class"),
    ],
    ids=["no header", "byte order mark", "carriage returns", "blank lines", "quotes and spaces", "class"],
)
def test_the_same_rows_however_written(tmp_path, text):
    source = read_csv(written(tmp_path, text))
    assert source.classes == ("setosa", "virginica")
    assert np.allclose(rows_of(source).inputs.numpy(), [[5.1, 3.5], [7, 3.2], [4.9, 3]])


@pytest.mark.parametrize("name", ["label", "target", "class", "y", "Label", "Y"])
def test_the_target_is_found_by_name_wherever_it_stands(tmp_path, name):
    source = read_csv(written(tmp_path, f"a,{name},b\n1,0,2\n3,1,4\n"))
    assert rows_of(source).targets.tolist() == [0, 1]
    assert rows_of(source).inputs.tolist() == [[1, 2], [3, 4]]


def test_the_target_can_be_named_and_label_goes_before_y(tmp_path):
    path = written(tmp_path, "y,label,z\n0,1,0\n1,0,1\n")
    assert rows_of(read_csv(path)).targets.tolist() == [1, 0]
    assert rows_of(read_csv(path, target="z")).targets.tolist() == [0, 1]
    with pytest.raises(DataError, match="no column 'lable' to use as target; did you mean 'label'"):
        read_csv(path, target="lable")
    with pytest.raises(DataError, match="no column 'q' to use as target; known: label, y, z"):
        read_csv(path, target="q")


def test_without_a_header_columns_are_numbered(tmp_path):
    path = written(tmp_path, "0,5,1\n1,6,0\n")
    assert rows_of(read_csv(path)).targets.tolist() == [1, 0]
    assert rows_of(read_csv(path, target="0")).targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("column", "task", "found"),
    [
        (["0", "1", "2"], None, "classification"),
        (["0.0", "1.0", "2.0"], None, "classification"),
        (["0.5", "1.0", "2.0"], None, "regression"),
        (["1e-3", "1", "2"], None, "regression"),
        (["0", "1", "2"], "regression", "regression"),
        (["a", "1", "2"], None, "classification"),
        (["True", "False", "True"], None, "classification"),
    ],
)
def test_the_task_is_what_the_targets_say_unless_told(tmp_path, column, task, found):
    source = read_csv(written(tmp_path, "a,b\n" + "\n".join(f"7,{cell}" for cell in column)), task=task)
    assert source.task == found


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=2, max_size=20)
)
def test_numbers_come_through_exactly(tmp_path_factory, rows):
    text = "a,b,c,label\n" + "\n".join(
        ",".join(map(repr, row)) + f",{place % 2}" for place, row in enumerate(rows)
    )
    source = read_csv(written(tmp_path_factory.mktemp("csv"), text))
    assert torch.equal(rows_of(source).inputs, torch.tensor(rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: 0 lines"),
        ("\n\n", "is empty: 0 lines"),
        ("a,b,label\n", "a header but no rows"),
        ("a,b,label\n1,2,0\n3,4\n", "line 3 has 2 cells where the first has 3"),
        ("a,b,label\n1,2,0\n\n3,4,1,9\n", "line 4 has 4 cells where the first has 3"),
        (",a,label\n0,1,0\n1,2,1\n", r"column 1 has no name \(a row number\?\)"),
        ("a,a,label\n0,1,0\n", "more than one column 'a'"),
        ("label\n0\n1\n", "has 1 columns; it needs at least one feature and a target"),
        (
            "age,sex,label\n1,male,0\n2,female,1\n",
            r"column 'sex' is not numeric: 2 of 2 cells are words, first 'male' in line 2",
        ),
        ("age,label\n1,0\n\n2,1\n?x,1\n", r"column 'age' is not numeric: 1 of 3 .* first '\?x' in line 5"),
        ("age,label\n1,0\n,1\n3,1\nNA,0\n", r"column 'age': 2 of 4 values are missing, .* \(first: line 3\)"),
        (
            "age,label\n1,0\nnan,1\ninf,1\n",
            r"column 'age': 2 of 3 values are missing, NaN or infinite \(first: line 3\)",
        ),
        ("age,label\n1,0\n2,\n", r"target column 'label': 1 of 2 values are missing.* \(first: line 3\)"),
        ("age,label\n1,inf\n2,1\n", "1 of 2 targets are NaN or infinite"),
        ("a,label\n1,3\n2,3\n3,3\n", "only one class: all 3 labels are 3"),
        ("a,label\n1,x\n2,x\n3,x\n", "only one class"),
        ("a,label\n1,-1\n2,1\n3,1\n", "labels out of range: 1 of 3 are negative"),
        ("a,label\n1,0\n2,1\n3,250000\n", "would make 250001 classes of 3 rows; .*task='regression'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message):
        load_splits(str(path))


def test_words_cannot_be_regressed(tmp_path):
    with pytest.raises(
        DataError, match="target column 'kind' holds words such as 'setosa'; regression needs numbers"
    ):
        read_csv(written(tmp_path, FLOWERS), task="regression")


def test_something_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00a,b\n1,2")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_csv(path)
    path.write_text("a,label\n" + "1" * 200_000 + ",0\n")
    with pytest.raises(DataError, match="is not a table of text: field larger than"):
        read_csv(path)


def test_a_csv_file_is_split_and_named(tmp_path):
    lines = "\n".join(f"{row},{row % 7},{'yes' if row % 2 else 'no'}" for row in range(100))
    splits = load_splits(str(written(tmp_path, "a,b,class\n" + lines)))
    assert splits.schema.classes == ("no", "yes")
    assert splits.schema.kind == "tabular"
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (72, 8, 20)
