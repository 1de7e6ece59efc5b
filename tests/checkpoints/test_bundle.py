"""Bundles: exact round trips, equal bytes for equal input, and every altered byte refused."""

from __future__ import annotations

import hashlib
import json
import pickletools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hqde.checkpoints import read_bundle, read_manifest, write_bundle
from hqde.checkpoints.manifest import parse_manifest, render_manifest
from hqde.errors import ArtefactError, CheckpointError, PreconditionError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


def raw_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert raw_bytes(found) == raw_bytes(expected)


def small(folder: Path) -> Path:
    path = folder / "bundle"
    state = {"weight": torch.tensor([[1.0, float("nan")], [-0.0, 1e-40]]), "steps": torch.tensor(7)}
    write_bundle(path, manifest={"round": 3, "rate": 0.1}, tensors={"group-0": state, "empty": {}})
    return path


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_every_dtype_and_shape_keeps_every_bit(tmp_path_factory, dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.tensor(shape).prod()) if shape else 1
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count * dtype.itemsize,), generator=generator)
    tensor = bits.to(torch.uint8).view(dtype).reshape(shape)  # any bit pattern: NaN payloads, subnormals, -0
    path = tmp_path_factory.mktemp("bits") / "b"
    write_bundle(path, manifest={}, tensors={"t": {"x": tensor}})
    assert_same(read_bundle(path).tensors["t"]["x"], tensor)


def test_views_shared_and_expanded_tensors_round_trip(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "same": base,
        "transposed": base.t(),
        "strided": base[::2, 1::2],
        "row": base[1],
        "expanded": torch.tensor([3.5]).expand(5),
        "parameter": torch.nn.Parameter(base[2:]),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    write_bundle(tmp_path / "b", manifest={}, tensors={"t": tensors})
    found = read_bundle(tmp_path / "b").tensors["t"]
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(found[name], tensor)
    found["whole"].add_(1)  # what is read owns its memory
    assert_same(found["same"], base)


def test_manifest_comes_back_with_its_listing(tmp_path):
    path = small(tmp_path)
    manifest = read_manifest(path)
    assert manifest["round"] == 3
    assert manifest["rate"] == 0.1
    assert manifest["format_version"] == 1
    raw = (path / "group-0.safetensors").read_bytes()
    assert manifest["files"]["group-0.safetensors"] == {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "bytes": len(raw),
    }
    assert read_bundle(path).manifest == manifest
    assert read_bundle(path).tensors["empty"] == {}


def test_equal_input_gives_equal_bytes_in_any_order(tmp_path):
    one, two = {"a": torch.ones(2), "b": torch.zeros(3, dtype=torch.int64)}, {"z": torch.ones(1)}
    write_bundle(tmp_path / "x", manifest={"p": 1, "q": [1, 2]}, tensors={"one": one, "two": two})
    write_bundle(
        tmp_path / "y",
        manifest={"q": (1, 2), "p": 1},
        tensors={"two": two, "one": dict(reversed(one.items()))},
    )
    names = sorted(file.name for file in (tmp_path / "x").iterdir())
    assert names == ["manifest.json", "one.safetensors", "two.safetensors"]
    assert names == sorted(file.name for file in (tmp_path / "y").iterdir())
    for name in names:
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_what_was_read_can_be_written_again_unchanged(tmp_path):
    path = small(tmp_path)
    bundle = read_bundle(path)
    write_bundle(tmp_path / "again", manifest=bundle.manifest, tensors=bundle.tensors)
    for file in path.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_nothing_in_a_bundle_is_a_pickle(tmp_path):
    for file in small(tmp_path).iterdir():
        with pytest.raises(Exception, match=r"opcode|exhausted|pickle"):
            list(pickletools.genops(file.read_bytes()))


def test_every_altered_byte_in_every_file_is_refused(tmp_path):
    path = small(tmp_path)
    files = sorted(path.iterdir())
    assert len(files) == 3
    for file in files:
        raw = file.read_bytes()
        for position in range(len(raw)):
            for mask in (0x07, 0x80):  # 0x07 turns a newline into a carriage return
                file.write_bytes(raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
                with pytest.raises(CheckpointError, match=f"{file.name}|newer hqde"):
                    read_bundle(path)
        file.write_bytes(raw)
    read_bundle(path)


def test_every_truncation_and_any_growth_is_refused(tmp_path):
    path = small(tmp_path)
    for file in sorted(path.iterdir()):
        raw = file.read_bytes()
        for length in [*range(len(raw)), len(raw) + 1]:
            file.write_bytes((raw + b"\n")[:length])
            with pytest.raises(CheckpointError, match=file.name):
                read_bundle(path)
        file.write_bytes(raw)


def test_a_missing_file_is_named_and_a_foreign_one_ignored(tmp_path):
    path = small(tmp_path)
    (path / "notes.txt").write_text("hello")
    (path / "stray.safetensors").write_bytes(b"junk")
    assert set(read_bundle(path).tensors) == {"group-0", "empty"}
    (path / "group-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"group-0\.safetensors is missing: copy it again or retrain"):
        read_bundle(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        read_bundle(path)
    with pytest.raises(CheckpointError, match="nowhere is not there"):
        read_bundle(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="file is no folder"):
        read_bundle(tmp_path / "file")


def test_the_error_class_is_the_callers(tmp_path):
    path = small(tmp_path)
    (path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"empty\.safetensors is cut short \(0 bytes"):
        read_bundle(path, error=ArtefactError)


def reseal(manifest: dict[str, object], **changes: object) -> bytes:
    """A manifest with a fitting hash of its own, as someone who edits on purpose would make it."""
    content = {key: value for key, value in (manifest | changes).items() if key != "manifest_sha256"}
    text = json.dumps(content, sort_keys=True, indent=1) + "\n"
    content["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..safetensors",
        "x.pt",
        ".safetensors",
    ],
)
def test_a_resealed_manifest_cannot_point_outside(tmp_path, name):
    path = small(tmp_path)
    (tmp_path / "secret.safetensors").write_bytes((path / "empty.safetensors").read_bytes())
    manifest = read_manifest(path)
    entry = manifest["files"]["empty.safetensors"]
    (path / "manifest.json").write_bytes(reseal(manifest, files={name: entry}))
    with pytest.raises(CheckpointError, match="no file name inside a bundle"):
        read_bundle(path)


def test_a_resealed_manifest_over_a_file_that_is_no_safetensors(tmp_path):
    path = small(tmp_path)
    raw = b"\x80\x04not tensors"
    (path / "empty.safetensors").write_bytes(raw)
    entry = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (path / "manifest.json").write_bytes(reseal(read_manifest(path), files={"empty.safetensors": entry}))
    with pytest.raises(CheckpointError, match=r"empty\.safetensors is no safetensors file"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 2},
            "format version 2, and this HQDE reads versions up to 1: install a newer hqde",
        ),
        ({"format_version": "1"}, "no usable format_version"),
        ({"format_version": True}, "no usable format_version"),
        ({"format_version": 0}, "no usable format_version"),
        ({"files": None}, "lists no files"),
        ({"files": {"empty.safetensors": {"bytes": 3}}}, "without its size and SHA-256"),
        ({"files": {"empty.safetensors": {"bytes": 3, "sha256": "Z" * 64}}}, "without its size and SHA-256"),
    ],
)
def test_a_resealed_manifest_that_makes_no_sense(tmp_path, changes, message):
    path = small(tmp_path)
    (path / "manifest.json").write_bytes(reseal(read_manifest(path), **changes))
    with pytest.raises(CheckpointError, match=message):
        read_bundle(path)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b"9" * 5000],
    ids=["empty", "open", "list", "null", "binary", "deep", "no-version", "huge-number"],
)
def test_what_is_no_manifest_is_refused(raw):
    with pytest.raises(CheckpointError, match=r"^here is|^here holds|^here has"):
        parse_manifest(raw, where="here", error=CheckpointError)


def test_the_same_values_in_another_spelling_are_refused():
    raw = render_manifest({"a": 0.5}, files={})
    assert parse_manifest(raw, where="here", error=CheckpointError)["a"] == 0.5
    for other in (raw.replace(b"0.5", b"5e-1"), raw.replace(b"\n", b"\r\n"), raw.rstrip(), b" " + raw):
        with pytest.raises(CheckpointError, match="altered"):
            parse_manifest(other, where="here", error=CheckpointError)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"loss": float("inf")}, r"manifest\.loss is inf"),
        ({"a": [{"b": float("nan")}]}, r"manifest\.a\[0\]\.b is nan"),
        ({"a": {1: 2}}, "has the key 1"),
        ({3: 2}, "has the key 3"),
        ({"a": torch.ones(1)}, "is a Tensor"),
        ({"a": Path("x")}, "is a PosixPath"),
    ],
)
def test_a_manifest_that_json_cannot_hold_is_refused_before_writing(tmp_path, manifest, message):
    with pytest.raises(PreconditionError, match=message):
        write_bundle(tmp_path / "b", manifest=manifest, tensors={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stem", ["../x", "a/b", "", ".hidden", "a..b", "a ", "manifest\n", "a."])
def test_a_stem_that_is_no_file_name_is_refused(tmp_path, stem):
    with pytest.raises(PreconditionError, match="file stem"):
        write_bundle(tmp_path / "b", manifest={}, tensors={stem: {}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.complex128),
        [1.0],
    ],
)
def test_what_is_no_plain_tensor_is_refused(tmp_path, tensor):
    with pytest.raises(PreconditionError, match="t: "):
        write_bundle(tmp_path / "b", manifest={}, tensors={"t": {"x": tensor}})
    assert list(tmp_path.iterdir()) == []
