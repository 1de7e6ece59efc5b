"""IDX folders, plain and gzipped, whole and broken."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch

from hqde.data import load_splits
from hqde.data.readers.idx import FASHION_CLASSES, read_fashion_mnist, read_idx
from hqde.errors import ConfigError, DataError


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, size=(60, 4, 3))
LABELS = np.arange(60) % 10


@pytest.fixture
def folder(tmp_path):
    """60 training rows, gzipped, and 20 test rows, plain and with the other spelling."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(IMAGES)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS)))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx_bytes(IMAGES[:20]))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx_bytes(LABELS[:20]))
    return tmp_path


def test_rows_are_what_was_written(folder):
    source = read_fashion_mnist(folder)
    assert source.classes == FASHION_CLASSES
    rows = source.train.fetch(torch.arange(60))
    assert rows.inputs.dtype == torch.uint8
    assert np.array_equal(rows.inputs.numpy()[:, 0], IMAGES)
    assert np.array_equal(rows.targets.numpy(), LABELS)
    assert len(source.test) == 20
    assert np.array_equal(source.test.fetch(torch.arange(20)).inputs.numpy()[:, 0], IMAGES[:20])


def test_the_grammar_finds_it(folder):
    splits = load_splits(f"fashion-mnist:{folder}", validation_fraction=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (48, 12, 20)
    assert splits.schema.kind == "image"
    assert splits.schema.input_shape == (1, 4, 3)
    assert splits.schema.classes[9] == "Ankle boot"
    with pytest.raises(ConfigError, match="holds classes"):
        load_splits(f"fashion-mnist:{folder}", task="regression")


def test_a_missing_file_is_named_with_its_other_spellings(folder):
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"no such file: .*train-labels-idx1-ubyte; .*train-labels\.idx1-ubyte\.gz"
    ):
        read_fashion_mnist(folder)


def test_a_missing_folder_is_named_with_what_is_there(folder):
    with pytest.raises(DataError, match=r"no such folder: .*nowhere; .* holds t10k-images"):
        read_fashion_mnist(folder / "nowhere")


def test_different_numbers_of_images_and_labels_are_refused(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[:-1])))
    with pytest.raises(DataError, match=r"has 60 images but .* 59 labels"):
        read_fashion_mnist(folder)


def test_labels_out_of_range_are_refused(folder):
    labels = LABELS.copy()
    labels[7] = 200
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    with pytest.raises(
        DataError, match=r"training data: .*beyond the 10 classes 0 to 9 \(first: 200 in row 7\)"
    ):
        load_splits(f"fashion-mnist:{folder}")


def test_images_of_another_size_for_testing_are_refused(folder):
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx_bytes(IMAGES[:20, :3]))
    with pytest.raises(DataError, match=r"training rows have shape \(1, 4, 3\) but test rows \(1, 3, 3\)"):
        load_splits(f"fashion-mnist:{folder}")


@pytest.mark.parametrize("cut", [0, 3, 9, 16, 17, 700])
@pytest.mark.parametrize("packed", [False, True])
def test_truncated_content_is_refused_with_both_numbers(tmp_path, cut, packed):
    path = tmp_path / ("x.gz" if packed else "x")
    content = idx_bytes(IMAGES)[:cut]
    path.write_bytes(gzip.compress(content) if packed else content)
    expected = 16 if cut < 16 else 16 + IMAGES.size
    with pytest.raises(
        DataError, match=f"truncated or damaged: expected {expected} bytes of content, found {cut};"
    ):
        read_idx(path, num_dimensions=3)


def test_a_truncated_gzip_file_says_how_much_came_out(tmp_path):
    path = tmp_path / "x.gz"
    packed = gzip.compress(idx_bytes(IMAGES))
    for size in range(20, len(packed), 50):
        path.write_bytes(packed[:size])
        with pytest.raises(
            DataError, match=r"truncated or damaged: expected \d+ bytes of content, found \d+ \("
        ) as caught:
            read_idx(path, num_dimensions=3)
        if "expected 16" not in str(caught.value):
            assert isinstance(caught.value.__cause__, EOFError)


def test_a_damaged_gzip_file_is_refused(tmp_path):
    path = tmp_path / "x.gz"
    packed = bytearray(gzip.compress(idx_bytes(IMAGES)))
    packed[-8] ^= 1  # the checksum
    path.write_bytes(packed)
    with pytest.raises(DataError, match="CRC"):
        read_idx(path, num_dimensions=3)
    path.write_bytes(b"this is no gzip file at all")
    with pytest.raises(DataError, match=r"truncated or damaged: .*Not a gzipped file"):
        read_idx(path, num_dimensions=3)


def test_bytes_beyond_the_end_are_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(IMAGES) + b"!")
    with pytest.raises(DataError, match=f"bytes beyond the {16 + IMAGES.size}"):
        read_idx(path, num_dimensions=3)


def test_a_wrong_magic_number_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(LABELS))
    with pytest.raises(DataError, match="begins with 0x00000801, expected 0x00000803"):
        read_idx(path, num_dimensions=3)


def test_a_header_that_announces_nonsense_costs_no_memory(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"abc")
    with pytest.raises(DataError, match=f"expected {16 + (2**32 - 1) ** 3} bytes of content, found 19"):
        read_idx(path, num_dimensions=3)


def test_no_rows_are_refused(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(IMAGES[:0])))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[:0])))
    with pytest.raises(DataError, match="training data are empty: 0 rows"):
        load_splits(f"fashion-mnist:{folder}")
