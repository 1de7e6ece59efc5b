"""Image folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hqde.data import load_splits
from hqde.data.readers.image_folder import read_image_folder
from hqde.errors import DataError

Image = pytest.importorskip("PIL.Image")


def put(path, value, *, size=(4, 3), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def folder(tmp_path):
    for row in range(20):
        put(tmp_path / "pets" / ("dog" if row % 2 else "cat") / f"{row:02}.png", row)
    return tmp_path / "pets"


def test_classes_are_the_sub_folders_and_pixels_what_was_written(folder):
    (folder / "cat" / "notes.txt").write_text("not an image")
    put(folder / "cat" / ".hidden.png", 0)
    put(folder / ".trash" / "x.png", 0)
    source = read_image_folder(folder)
    assert source.classes == ("cat", "dog")
    assert source.name == "pets"
    rows = source.train.fetch(torch.arange(20))
    assert rows.inputs.shape == (20, 1, 3, 4)
    assert rows.inputs[:, 0, 0, 0].tolist() == [*range(0, 20, 2), *range(1, 20, 2)]
    assert rows.targets.tolist() == [0] * 10 + [1] * 10


def test_the_grammar_finds_it_and_splits(folder, monkeypatch):
    splits = load_splits(str(folder))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (14, 2, 4)
    monkeypatch.chdir(folder.parent)
    assert len(load_splits("pets").test) == 4
    assert load_splits("pets/").name == "pets"


@pytest.mark.parametrize("validation", ["validation", "val", None])
def test_parts_in_the_folder_are_kept_apart(tmp_path, validation):
    for row in range(20):
        put(tmp_path / "train" / str(row % 2) / f"{row}.png", row)
    for row in range(4):
        put(tmp_path / "test" / str(row % 2) / f"{row}.bmp", 100 + row)
        if validation:
            put(tmp_path / validation / str(row % 2) / f"{row}.gif", 200 + row)
    splits = load_splits(str(tmp_path))
    values = [
        np.sort(part.fetch(torch.arange(len(part))).inputs[:, 0, 0, 0].numpy())
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert values[2].tolist() == [100, 101, 102, 103]
    if validation:
        assert values[0].tolist() == list(range(20))
        assert values[1].tolist() == [200, 201, 202, 203]
    else:
        assert sorted([*values[0], *values[1]]) == list(range(20))
        assert len(values[1]) == 2


def test_colour_anywhere_makes_it_colour(folder):
    put(folder / "dog" / "99.jpg", (10, 20, 30), mode="RGB")
    assert read_image_folder(folder).train.fetch(torch.arange(21)).inputs.shape == (21, 3, 3, 4)


def test_images_of_different_size_are_refused_with_the_sizes(folder):
    put(folder / "dog" / "98.png", 0, size=(5, 5))
    with pytest.raises(DataError, match=r"differ in size: 4×3 \(20 images\), 5×5 \(1 images\); .*98\.png"):
        read_image_folder(folder).train.fetch(torch.arange(21))
    with pytest.raises(DataError, match=r"differ in size|bring both to one shape"):
        load_splits(str(folder))


def test_a_file_that_is_no_image_is_named(folder):
    (folder / "dog" / "97.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(DataError, match=r"97\.png cannot be decoded as an image: cannot identify"):
        read_image_folder(folder).train.fetch(torch.arange(21))


def test_classes_without_images_and_unknown_test_classes_are_refused(folder):
    (folder / "bird").mkdir()
    with pytest.raises(DataError, match=r"class folder .*bird holds no images \(\.bmp"):
        read_image_folder(folder)
    put(folder.parent / "other" / "train" / "a" / "1.png", 1)
    put(folder.parent / "other" / "test" / "b" / "1.png", 1)
    with pytest.raises(DataError, match=r"test/b is a class that the training folder does not have \(a\)"):
        read_image_folder(folder.parent / "other")


def test_folders_without_classes_are_refused_with_a_hint(tmp_path):
    with pytest.raises(DataError, match="holds no class folders"):
        read_image_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train holds no class folders"):
        read_image_folder(tmp_path)
    (tmp_path / "train").rmdir()
    (tmp_path / "train.parquet").touch()
    with pytest.raises(DataError, match=f"write cifar10:{tmp_path}"):
        read_image_folder(tmp_path)
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train-images-idx3-ubyte").touch()
    with pytest.raises(DataError, match=f"write fashion-mnist:{tmp_path}"):
        read_image_folder(tmp_path)


def test_one_class_alone_is_refused(tmp_path):
    put(tmp_path / "cat" / "1.png", 1)
    put(tmp_path / "cat" / "2.png", 1)
    with pytest.raises(DataError, match="only one class: all 2 labels are 0"):
        load_splits(str(tmp_path))
