"""Parquet files: tables, images, truncation."""

from __future__ import annotations

import decimal
import io
import json

import numpy as np
import pytest
import torch

from hqde.data import load_splits
from hqde.data.readers.image_parquet import read_image_parquet
from hqde.data.readers.parquet import read_parquet
from hqde.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")


def written(tmp_path, columns, **options):
    path = tmp_path / "t.parquet"
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    parquet.write_table(table, path, **options)
    return path


def rows_of(source):
    return source.train.fetch(torch.arange(len(source.train)))


def png(mode, size, colour):
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "PNG")
    return stream.getvalue()


COLUMNS = {"a": [1, 2, 3, 4], "b": [0.5, 1.5, 2.5, 3.5], "label": ["x", "y", "x", "y"]}


def test_a_table_of_numbers_and_words(tmp_path):
    source = read_parquet(written(tmp_path, COLUMNS))
    assert source.classes == ("x", "y")
    assert rows_of(source).inputs.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5], [4, 3.5]]
    assert rows_of(source).targets.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "values",
    [
        pyarrow.array([1, 0, 1, 1], pyarrow.int8()),
        pyarrow.array([1, 0, 1, 1], pyarrow.uint64()),
        pyarrow.array([1.0, 0.0, 1.0, 1.0], pyarrow.float16()),
        pyarrow.array([True, False, True, True]),
        pyarrow.array([decimal.Decimal(value) for value in (1, 0, 1, 1)], pyarrow.decimal128(5, 2)),
    ],
    ids=lambda values: str(values.type),
)
def test_every_kind_of_number_is_a_feature_and_a_target(tmp_path, values):
    source = read_parquet(written(tmp_path, {"a": values, "label": values}))
    assert rows_of(source).inputs[:, 0].tolist() == [1, 0, 1, 1]
    assert rows_of(source).targets.tolist() == [1, 0, 1, 1]
    assert source.task == "classification"


def test_words_stored_once_are_classes_too(tmp_path):
    values = pyarrow.array(["x", "y", "x", "y"]).dictionary_encode()
    assert read_parquet(written(tmp_path, {"a": [1, 2, 3, 4], "kind": values})).classes == ("x", "y")


def test_row_numbers_of_pandas_are_no_feature(tmp_path):
    source = read_parquet(written(tmp_path, COLUMNS | {"__index_level_0__": [0, 1, 2, 3]}))
    assert rows_of(source).inputs.shape == (4, 2)


def test_fractions_make_it_regression_and_the_target_can_be_named(tmp_path):
    path = written(tmp_path, {"a": [1, 2], "b": [0.5, 1.5]})
    assert read_parquet(path).task == "regression"
    assert read_parquet(path, target="a").task == "classification"
    assert rows_of(read_parquet(path, target="a")).inputs.tolist() == [[0.5], [1.5]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (COLUMNS | {"city": ["Rome"] * 4}, "column 'city' is not numeric but string, first 'Rome'"),
        (COLUMNS | {"v": [[1, 2]] * 4}, "column 'v' is not numeric but list"),
        (COLUMNS | {"a": [1, None, 3, None]}, r"column 'a': 2 of 4 values are missing \(first: row 1\)"),
        (
            COLUMNS | {"b": [1, 2, float("nan"), 4]},
            r"column 'b': 1 of 4 values are NaN or infinite \(first: row 2\)",
        ),
        (
            COLUMNS | {"label": ["x", None, "y", "x"]},
            r"target column 'label': 1 of 4 values are missing \(first: row 1\)",
        ),
        (COLUMNS | {"label": [[1]] * 4}, "target column 'label' holds list"),
        (COLUMNS | {"label": ["x"] * 4}, "only one class"),
        ({"label": [1, 2]}, "has 1 columns"),
        (
            {"a": pyarrow.array([], pyarrow.int64()), "label": pyarrow.array([], pyarrow.int64())},
            "empty: 0 rows",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        load_splits(str(written(tmp_path, columns)))


def test_truncation_anywhere_is_refused_with_the_bytes(tmp_path):
    path = written(tmp_path, {"a": np.random.default_rng(0).random(500), "label": np.arange(500) % 3})
    content = path.read_bytes()
    footer_bytes = int.from_bytes(content[-8:-4], "little")
    for size in range(4, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(
            DataError, match=rf"truncated: expected b'PAR1' as the last 4 .* after {size} bytes"
        ):
            read_parquet(path)
    path.write_bytes(content[:2000] + content[-footer_bytes - 8 :])  # a piece is missing in the middle
    with pytest.raises(
        DataError, match=rf"expected at least {len(content)} bytes, found {2000 + footer_bytes + 8}"
    ):
        read_parquet(path)
    path.write_bytes(b"PAR1" + content[-100:])  # not even the footer is whole
    with pytest.raises(DataError, match=f"expected at least {footer_bytes + 12} bytes, found 104"):
        read_parquet(path)


def test_damage_is_refused_and_the_reason_kept(tmp_path):
    path = written(tmp_path, {"a": np.random.default_rng(0).random(500), "label": np.arange(500) % 3})
    content = path.read_bytes()
    footer_bytes = int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[: -footer_bytes - 8] + b"\xff" * footer_bytes + content[-8:])
    with pytest.raises(DataError, match=r"t\.parquet \(\d+ bytes\) is damaged") as caught:
        read_parquet(path)
    assert isinstance(caught.value.__cause__, pyarrow.ArrowException | OSError)
    path.write_bytes(b"PAR1" + b"\xff" * 60 + content[64:])  # the first page's header
    with pytest.raises(DataError, match="is damaged"):
        read_parquet(path)


def test_something_else_under_that_name_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    for content in (b"", b"a", b"hello there, this is text"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a parquet file: it begins with"):
            read_parquet(path)
    with pytest.raises(DataError, match="no such file"):
        read_parquet(tmp_path / "other.parquet")


def image_table(images, labels, **schema):
    return pyarrow.table(
        {"image": [{"bytes": image, "path": "x"} for image in images], "label": labels}, **schema
    )


def test_images_in_one_file_are_split(tmp_path):
    images = [png("RGB", (6, 4), (row, 2 * row, 7)) for row in range(60)]
    splits = load_splits(str(written(tmp_path, image_table(images, [row % 3 for row in range(60)]))))
    assert splits.schema.input_shape == (3, 4, 6)
    assert splits.schema.kind == "image"
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (43, 5, 12)
    rows = splits.test.fetch(torch.arange(12))
    values = rows.inputs[:, 0, 0, 0].long()
    assert torch.equal(rows.inputs[:, 1, 3, 5].long(), 2 * values)
    assert torch.equal(values % 3, rows.targets)


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path):
    grey = [png("L", (2, 2), 10), png("1", (2, 2), 1), png("LA", (2, 2), (30, 255))]
    examples, _, _ = read_image_parquet([written(tmp_path, image_table(grey, [0, 1, 1]))])
    rows = examples.fetch(torch.arange(3)).inputs
    assert rows.shape == (3, 1, 2, 2)
    assert rows[:, 0, 0, 0].tolist() == [10, 255, 30]
    mixed = [*grey, png("RGB", (2, 2), (1, 2, 3)), png("RGBA", (2, 2), (4, 5, 6, 255)), png("L", (2, 2), 9)]
    examples, _, _ = read_image_parquet([written(tmp_path, image_table(mixed, [0, 1, 1, 0, 0, 1]))])
    rows = examples.fetch(torch.arange(6)).inputs
    assert rows[:, :, 1, 1].tolist() == [[10] * 3, [255] * 3, [30] * 3, [1, 2, 3], [4, 5, 6], [9] * 3]


def test_bytes_without_a_struct_and_class_names_of_the_hub(tmp_path):
    images = [png("L", (2, 2), value) for value in range(4)]
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"img": images, "label": [0, 1, 0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    assert read_parquet(written(tmp_path, table)).classes == ("cat", "dog")
    table = table.replace_schema_metadata({"huggingface": "{}"})
    assert read_parquet(written(tmp_path, table)).classes is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([png("L", (2, 2), 0), png("L", (3, 2), 0), png("L", (2, 2), 0), png("L", (3, 2), 0)],
         r"images differ in size: 2×2 \(2 images\), 3×2 \(2 images\); first odd one: .*row 1"),
        ([png("L", (2, 2), 0), b"not an image"] * 2, "the image of row 1 cannot be decoded as an image"),
        ([png("RGB", (40, 40), (1, 2, 3))[:-30]] * 4, "the image of row 0 cannot be decoded .*truncated"),
        ([png("I;16", (2, 2), 0)] * 4, "more than 8 bits per channel"),
        ([png("L", (2, 2), 0), None] * 2, r"2 of 4 rows have no image bytes \(first: row 1\)"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_used_are_refused(tmp_path, images, message):
    path = written(tmp_path, image_table(images, [0, 1, 0, 1]))
    with pytest.raises(DataError, match=message):
        read_parquet(path).train.fetch(torch.arange(4))


def test_an_image_column_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="column 'img' holds string, not image bytes"):
        read_parquet(written(tmp_path, {"img": ["a", "b"], "label": [0, 1]}))
    with pytest.raises(DataError, match="has no column 'img' or 'image', only"):
        read_image_parquet([written(tmp_path, COLUMNS)])


def test_parts_with_different_columns_are_refused(tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    parquet.write_table(image_table([png("L", (2, 2), 0)], [0]), first)
    parquet.write_table(image_table([png("L", (2, 2), 0)], ["x"]), second)
    with pytest.raises(DataError, match="the parts have different columns"):
        read_image_parquet([first, second])


def test_large_images_are_decoded_in_threads_to_the_same_pixels(tmp_path, monkeypatch):
    from hqde.data.readers import images as module

    encoded = [png("RGB", (5, 5), (row % 256, 0, 0)) for row in range(700)]
    alone = module.decode_images(encoded, describe=str)
    monkeypatch.setattr(module, "_THREADED_BYTES", 0)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 3)
    assert torch.equal(module.decode_images(encoded, describe=str), alone)
    assert alone[:, 0, 0, 0].tolist() == [row % 256 for row in range(700)]
