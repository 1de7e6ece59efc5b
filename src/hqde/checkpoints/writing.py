"""Writing a bundle so that a crash at any moment leaves the older or the newer one whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from hqde.checkpoints.bundle import set_aside_path
from hqde.checkpoints.manifest import MANIFEST_NAME, TENSOR_SUFFIX, check_stem, render_manifest
from hqde.errors import CheckpointError, HqdeError, PreconditionError


def write_bundle(
    path: str | os.PathLike[str],
    *,
    manifest: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    error: type[HqdeError] = CheckpointError,
) -> None:
    """Write the directory ``path``: ``manifest.json`` and one ``.safetensors`` per stem, all or nothing.

    Everything is written into a sibling directory, flushed to the disk, and renamed into place; an older
    bundle at ``path`` is renamed aside first and removed last, and ``read_bundle`` finds it there if a crash
    came in between. One writer per path. Equal input gives equal bytes: keys and tensors are sorted, nothing
    holds a time. Tensors keep dtype, shape and every bit; strides and sharing are not kept (a tensor that
    shares memory with another is written in full).

    Args:
        path: the directory to make or replace; missing parents are made.
        manifest: plain JSON; gains ``format_version``, ``files`` and ``manifest_sha256``.
        tensors: file stem to tensors by name, on any device.
        error: the exception when the disk refuses.

    Raises:
        PreconditionError: a stem is no file name, the manifest is not plain JSON, a tensor is not dense, or
            ``path`` holds files that are no bundle's (they would be lost).
        CheckpointError: (or ``error``) the directory cannot be written.
    """
    _check(manifest, tensors)
    target = Path(os.path.realpath(path))
    check_replaceable(target)
    fresh = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(fresh)
        try:
            _fill(fresh, manifest, tensors)
            _swap_in(fresh, target)
        finally:
            remove_tree(fresh)
    except OSError as problem:
        raise error(
            f"{target} cannot be written ({problem.strerror or problem}): free space or choose another path."
        ) from problem


def measure_bundle(*, manifest: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of all files that ``write_bundle`` would write; nothing touches the disk.

    Raises:
        PreconditionError: as ``write_bundle``, but for the path.

    >>> measure_bundle(manifest={}, tensors={"state": {"w": torch.ones(2)}})
    326
    """
    _check(manifest, tensors)
    sizes = 0
    files: dict[str, dict[str, Any]] = {}
    for stem in sorted(tensors):
        entry = _describe(_encode(stem, tensors[stem]))
        files[stem + TENSOR_SUFFIX] = entry
        sizes += entry["bytes"]
    return sizes + len(render_manifest(manifest, files=files))


def check_replaceable(path: Path) -> None:
    """Refuse a path whose replacement would lose anything but an older bundle.

    Raises:
        PreconditionError: ``path`` is a file, or a directory with files that no bundle has.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise PreconditionError(f"{path} is a file and a folder goes there: choose another path.")
    foreign = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.is_dir() or (entry.name != MANIFEST_NAME and entry.suffix != TENSOR_SUFFIX)
    )
    if foreign:
        raise PreconditionError(f"{path} holds {foreign[0]}, which would be lost: choose another folder.")


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _check(manifest: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse what cannot be written, before anything is."""
    for stem, named in tensors.items():
        check_stem(stem)
        _check_tensors(stem, named)
    render_manifest(manifest, files={})


def _check_tensors(stem: str, named: Mapping[str, Tensor]) -> None:
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise PreconditionError(f"{stem}: {name} is a {type(tensor).__name__}, and only tensors go here.")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise PreconditionError(f"{stem}: {name} is not a dense tensor with values: convert it first.")


def _fill(folder: Path, manifest: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    folder.mkdir()
    files: dict[str, dict[str, Any]] = {}
    for stem in sorted(tensors):
        raw = _encode(stem, tensors[stem])
        files[stem + TENSOR_SUFFIX] = _describe(raw)
        _write_file(folder / (stem + TENSOR_SUFFIX), raw)
    _write_file(folder / MANIFEST_NAME, render_manifest(manifest, files=files))
    _flush_folder(folder)


def _describe(raw: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}


def _encode(stem: str, named: Mapping[str, Tensor]) -> bytes:
    try:
        return save({name: _own_copy(named[name]) for name in sorted(named)})
    except KeyError as dtype:  # what safetensors raises for a dtype it has no name for
        raise PreconditionError(
            f"{stem}: safetensors cannot hold a {dtype} tensor: convert it first."
        ) from None


def _own_copy(tensor: Tensor) -> Tensor:
    # safetensors refuses views that share storage; a contiguous copy of each is exact and independent.
    dense = tensor.detach().resolve_conj().resolve_neg()
    return dense.to("cpu").clone(memory_format=torch.contiguous_format)


def _swap_in(fresh: Path, target: Path) -> None:
    aside = set_aside_path(target)
    if target.exists():
        remove_tree(aside)  # left by a crash after a swap; the bundle at target is the newer one
        os.rename(target, aside)
    try:
        os.rename(fresh, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        raise
    _flush_folder(target.parent)
    remove_tree(aside)


def _write_file(file: Path, raw: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # directories cannot be opened for flushing elsewhere
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
