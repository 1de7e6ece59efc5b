"""Reading a bundle: a directory of ``manifest.json`` and ``*.safetensors``, every byte verified."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from hqde.checkpoints.manifest import CURE, MANIFEST_NAME, TENSOR_SUFFIX, parse_manifest
from hqde.errors import CheckpointError, HqdeError


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds: the manifest (with its listing) and, per file stem, tensors by name on the CPU."""

    manifest: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def read_bundle(path: str | os.PathLike[str], *, error: type[HqdeError] = CheckpointError) -> Bundle:
    """The bundle at ``path``, after its manifest and each listed file have been checked.

    The manifest checks itself (SHA-256 of its own text) and holds size and SHA-256 of each file; bytes are
    read once, hashed, and only then decoded. Files that the manifest does not list are ignored. This finds
    accidents and careless edits; it is no signature, so it does not prove who wrote the bundle. If a crash
    fell between the two renames of a replacement, the older bundle, still whole beside ``path``, is read.

    Args:
        path: the bundle's directory.
        error: the exception for anything missing, altered, cut short, or of a newer format.

    Returns:
        The manifest and the tensors.

    Raises:
        CheckpointError: (or ``error``) names the file and what is wrong with it.

    >>> import tempfile, torch
    >>> from hqde.checkpoints import write_bundle
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bundle(Path(folder, "b"), manifest={"round": 3}, tensors={"state": {"w": torch.ones(2)}})
    ...     bundle = read_bundle(Path(folder, "b"))
    >>> bundle.manifest["round"], bundle.tensors["state"]["w"]
    (3, tensor([1., 1.]))
    """
    folder = settled_path(Path(path))
    manifest = _read_manifest(folder, error)
    tensors = {
        name.removesuffix(TENSOR_SUFFIX): _read_tensors(folder / name, entry["bytes"], entry["sha256"], error)
        for name, entry in manifest["files"].items()
    }
    return Bundle(manifest=manifest, tensors=tensors)


def read_manifest(
    path: str | os.PathLike[str], *, error: type[HqdeError] = CheckpointError
) -> dict[str, Any]:
    """The verified manifest of the bundle at ``path``, without reading its tensors.

    Raises:
        CheckpointError: (or ``error``) if the manifest is missing, altered, or of a newer format.
    """
    return _read_manifest(settled_path(Path(path)), error)


def set_aside_path(path: Path) -> Path:
    """Where the older bundle stands while a newer one takes its place at ``path``."""
    return path.with_name(f".{path.name}.old")


def settled_path(path: Path) -> Path:
    """``path``, or the older bundle beside it if a crash came between a replacement's two renames."""
    path = Path(os.path.realpath(path))
    aside = set_aside_path(path)
    return aside if aside.is_dir() and not path.exists() else path


def _read_manifest(folder: Path, error: type[HqdeError]) -> dict[str, Any]:
    if not folder.is_dir():
        raise error(f"{folder} is {'no folder' if folder.exists() else 'not there'}: check the path.")
    raw = _read_bytes(folder / MANIFEST_NAME, error)
    return parse_manifest(raw, where=str(folder / MANIFEST_NAME), error=error)


def _read_tensors(file: Path, size: int, sha256: str, error: type[HqdeError]) -> dict[str, Tensor]:
    raw = _read_bytes(file, error)
    if len(raw) != size:
        verb = "is cut short" if len(raw) < size else "has grown"
        raise error(f"{file} {verb} ({len(raw)} bytes, the manifest says {size}): {CURE}.")
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise error(f"{file} was altered (its SHA-256 is not the manifest's): {CURE}.")
    try:
        return load(raw)
    except SafetensorError as problem:
        raise error(f"{file} is no safetensors file ({problem}): {CURE}.") from problem


def _read_bytes(file: Path, error: type[HqdeError]) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise error(f"{file} is missing: {CURE}.") from None
    except OSError as problem:
        raise error(f"{file} cannot be read ({problem.strerror}): {CURE}.") from problem
