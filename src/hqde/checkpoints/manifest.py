"""The manifest of a bundle: plain JSON with one spelling, which carries its own SHA-256."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from hqde.errors import HqdeError, PreconditionError

FORMAT_VERSION = 1
"""The newest bundle format this version of HQDE writes and reads."""

MANIFEST_NAME = "manifest.json"
TENSOR_SUFFIX = ".safetensors"
CURE = "copy it again or retrain"

_RESERVED = ("format_version", "files", "manifest_sha256")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_stem(stem: str) -> None:
    """Refuse a file stem that could leave the bundle's directory or hide in it.

    Raises:
        PreconditionError: the stem is not letters, digits, ``-``, ``_`` and single inner dots.
    """
    if not isinstance(stem, str) or not _STEM.fullmatch(stem):
        raise PreconditionError(f"a file stem is letters, digits, '-', '_' and inner dots, got {stem!r}.")


def render_manifest(manifest: Mapping[str, Any], *, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The bytes of ``manifest.json``: the caller's entries, the file listing, and the manifest's own hash.

    The hash is SHA-256 over the same JSON (sorted keys, ASCII) without ``manifest_sha256``. Equal input gives
    equal bytes. ``format_version``, ``files`` and ``manifest_sha256`` in ``manifest`` are replaced.

    Args:
        manifest: plain JSON values under string keys; finite numbers only (tuples become lists).
        files: file name to ``{"sha256": ..., "bytes": ...}``.

    Raises:
        PreconditionError: a value is not plain JSON, by its place in the manifest.

    >>> print(render_manifest({"round": 3}, files={}).decode())
    {
     "files": {},
     "format_version": 1,
     "manifest_sha256": "...",
     "round": 3
    }
    """
    own = {key: value for key, value in manifest.items() if key not in _RESERVED}
    content = _plain({**own, "format_version": FORMAT_VERSION, "files": files}, "manifest")
    return _render(content | {"manifest_sha256": _digest(content)})


def parse_manifest(raw: bytes, *, where: str, error: type[HqdeError]) -> dict[str, Any]:
    """The manifest in ``raw``, or an ``error`` that says what is wrong with it.

    Every byte counts: a manifest that holds the same values in another spelling is refused as altered.

    Args:
        raw: the bytes of ``manifest.json``.
        where: how messages name the file.
        error: the exception to raise.
    """
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError):
        raise error(f"{where} is not JSON (altered or cut short after {len(raw)} bytes): {CURE}.") from None
    if not isinstance(manifest, dict):
        raise error(f"{where} holds no JSON object: {CURE}.")
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise error(f"{where} has no usable format_version (found {version!r}): {CURE}.")
    if version > FORMAT_VERSION:
        raise error(
            f"{where} is in format version {version}, and this HQDE reads versions up to {FORMAT_VERSION}: "
            "install a newer hqde."
        )
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    # json.loads also accepts NaN, other spacing and repeated keys; writing it again shows them.
    if manifest.get("manifest_sha256") != _digest(content) or _render(manifest) != raw:
        raise error(f"{where} was altered (its SHA-256 does not fit): {CURE}.")
    _check_listing(manifest.get("files"), where, error)
    return manifest


def _check_listing(files: Any, where: str, error: type[HqdeError]) -> None:
    if not isinstance(files, dict):
        raise error(f"{where} lists no files: {CURE}.")
    for name, entry in files.items():
        if not name.endswith(TENSOR_SUFFIX) or not _STEM.fullmatch(name.removesuffix(TENSOR_SUFFIX)):
            raise error(f"{where} lists {name!r}, which is no file name inside a bundle: {CURE}.")
        sound = (
            isinstance(entry, dict)
            and isinstance(entry.get("bytes"), int)
            and isinstance(entry.get("sha256"), str)
            and _SHA256.fullmatch(entry["sha256"])
        )
        if not sound:
            raise error(f"{where} lists {name!r} without its size and SHA-256: {CURE}.")


def _render(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode("ascii")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(content)).hexdigest()


def _plain(value: Any, where: str) -> Any:
    """``value`` with lists for tuples and dicts for mappings; refuses what JSON cannot hold exactly."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PreconditionError(f"manifest entry {where} is {value}, which JSON cannot hold: use None.")
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise PreconditionError(f"manifest entry {where} has the key {key!r}: keys are strings.")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise PreconditionError(f"manifest entry {where} is a {type(value).__name__}: use plain JSON values.")
