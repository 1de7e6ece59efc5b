"""CIFAR-10 as parquet and as python batches; hostile pickles."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
import torch

from hqde.data import load_splits
from hqde.data.readers.cifar10 import CIFAR10_CLASSES, read_cifar10
from hqde.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 256, size=(100, 3, 32, 32), dtype=np.uint8)
LABELS = [row % 10 for row in range(100)]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path, rows, *, image="img", label="label"):
    images = [{"bytes": png(PIXELS[row]), "path": None} for row in rows]
    parquet.write_table(pyarrow.table({image: images, label: [LABELS[row] for row in rows]}), path)


def write_batches(folder, *, protocol=2, keys=str.encode):
    parts = {f"data_batch_{number + 1}": range(number * 20, number * 20 + 20) for number in range(5)}
    parts["test_batch"] = range(20)
    for name, rows in parts.items():
        batch = {"data": PIXELS[list(rows)].reshape(-1, 3072), "labels": [LABELS[row] for row in rows]}
        batch |= {"batch_label": b"x", "filenames": [b"a.png"] * len(rows)}
        (folder / name).write_bytes(
            pickle.dumps({keys(key): value for key, value in batch.items()}, protocol=protocol)
        )


def all_rows(examples):
    return examples.fetch(torch.arange(len(examples)))


@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
    ],
)
def test_parquet_rows_are_what_was_written(tmp_path, image, names):
    (tmp_path / "plain_text").mkdir()
    write_parquet(tmp_path / names[0], range(100), image=image)
    write_parquet(tmp_path / names[1], range(50, 60), image=image)
    source = read_cifar10(tmp_path)
    assert source.classes == CIFAR10_CLASSES
    assert np.array_equal(all_rows(source.train).inputs.numpy(), PIXELS)
    assert all_rows(source.train).targets.tolist() == LABELS
    assert np.array_equal(all_rows(source.test).inputs.numpy(), PIXELS[50:60])
    assert source.train.fetch(torch.tensor([7, 7, 3])).targets.tolist() == [7, 7, 3]


def test_parquet_parts_are_joined_in_order(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", range(30))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(30, 100))
    write_parquet(tmp_path / "test.parquet", range(10))
    assert np.array_equal(all_rows(read_cifar10(tmp_path).train).inputs.numpy(), PIXELS)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("keys", [str.encode, str])
@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_python_batches_are_read(tmp_path, protocol, keys, place):
    (tmp_path / place).mkdir(exist_ok=True)
    write_batches(tmp_path / place, protocol=protocol, keys=keys)
    source = read_cifar10(tmp_path)
    assert np.array_equal(all_rows(source.train).inputs.numpy(), PIXELS)
    assert all_rows(source.train).targets.tolist() == LABELS
    assert len(source.test) == 20


# What Python 2 wrote in 2009: {'data': array([[1, 2]], dtype=uint8), 'labels': [3]} at protocol 2, strings as
# SHORT_BINSTRING and the array through numpy.core.multiarray._reconstruct.
PYTHON_2 = (
    b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x00tb\x89T\x00\x0c\x00\x00" + bytes(range(256)) * 12 + b"tbU\x06labels](K\x03eu."
)


def test_a_pickle_as_python_2_wrote_it_is_read(tmp_path):
    write_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(PYTHON_2)
    rows = all_rows(read_cifar10(tmp_path).test)
    assert rows.targets.tolist() == [3]
    assert rows.inputs.flatten().tolist() == list(range(256)) * 12


class Hostile:
    """Runs a command when it is unpickled without care."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_batch_runs_nothing(tmp_path, protocol):
    write_batches(tmp_path)
    marker = tmp_path / "it ran"
    hostile = pickle.dumps(
        {"data": PIXELS[:1].reshape(1, -1), "labels": [0], "x": Hostile(marker)}, protocol=protocol
    )
    pickle.loads(hostile)
    assert marker.exists()  # the batch does what it is meant to, were it trusted
    marker.rmdir()
    (tmp_path / "data_batch_3").write_bytes(hostile)
    with pytest.raises(DataError, match=r"asks for posix\.mkdir when unpickled, which could run code"):
        read_cifar10(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    ],
)
def test_other_ways_out_of_the_cage_are_closed(tmp_path, call):
    write_batches(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(call)
    with pytest.raises(DataError, match=r"asks for|is truncated or not a CIFAR-10 batch"):
        read_cifar10(tmp_path)


def test_truncated_batches_are_refused_with_their_size(tmp_path):
    write_batches(tmp_path)
    path = tmp_path / "data_batch_2"
    content = path.read_bytes()
    for size in [0, 1, 50, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"data_batch_2 \({size} bytes\) is truncated"):
            read_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "holds a list"),
        ({"labels": [1]}, "no 'data'"),
        ({"data": PIXELS[:1].reshape(1, -1).astype(float), "labels": [1]}, "no 'data'"),
        ({"data": PIXELS[:1].reshape(1, -1)}, "no list 'labels'"),
        ({"data": PIXELS[:1].reshape(1, -1), "labels": ["cat"]}, "no list 'labels'"),
        ({"data": PIXELS[:2].reshape(2, -1), "labels": [1]}, "2 images but 1 labels"),
    ],
)
def test_batches_of_another_form_are_refused(tmp_path, batch, message):
    write_batches(tmp_path)
    (tmp_path / "data_batch_5").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match=message):
        read_cifar10(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds neither train\*\.parquet"):
        read_cifar10(tmp_path)
    write_batches(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(DataError, match="has no data_batch_4"):
        read_cifar10(tmp_path)
    write_parquet(tmp_path / "train.parquet", range(20))
    with pytest.raises(DataError, match=r"has no test\*\.parquet"):
        read_cifar10(tmp_path)


def test_max_train_decodes_only_what_is_kept(tmp_path, monkeypatch):
    from hqde.data.readers import images

    write_parquet(tmp_path / "train.parquet", range(100))
    write_parquet(tmp_path / "test.parquet", range(10))
    decoded = []
    original = images._decode
    monkeypatch.setattr(images, "_decode", lambda *args: decoded.append(args[2]) or original(*args))
    splits = load_splits(f"cifar10:{tmp_path}", max_train=40, validation_fraction=0.25)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 10)
    assert len(decoded) == 50
    splits.train.fetch(torch.arange(30))
    assert len(decoded) == 50  # once for good
