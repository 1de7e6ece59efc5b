"""Finding files, and importing what reads them only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hqde.errors import DataError, MissingExtraError


def existing_file(path: Path) -> Path:
    """``path``, or a refusal that says what is missing."""
    if path.is_dir():
        raise DataError(f"{path} is a folder where a file is needed; give the path of the file")
    if not path.is_file():
        raise DataError(f"no such file: {path}; {_nearest_folder(path)}")
    return path


def existing_folder(path: Path) -> Path:
    """``path``, or a refusal that says what is missing."""
    if path.is_file():
        raise DataError(
            f"{path} is a file where a folder is needed; give the folder that holds the data files"
        )
    if not path.is_dir():
        raise DataError(f"no such folder: {path}; {_nearest_folder(path)}")
    return path


def first_file(folder: Path, names: list[str]) -> Path:
    """The first of ``names`` that ``folder`` holds."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"no such file: {folder / names[0]}; the folder needs one of {', '.join(names)}")


def load_pyarrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        MissingExtraError: not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet files", extra="data") from error
    return pyarrow, pyarrow.parquet


def load_pillow() -> Any:
    """The module ``PIL.Image``.

    Raises:
        MissingExtraError: not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtraError("decoding images", extra="data") from error
    return PIL.Image


def _nearest_folder(path: Path) -> str:
    """Where the path stops existing, and what stands there instead."""
    parent = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    if parent is None:
        return "check the path"
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"{parent} holds {shown}" if names else f"{parent} is empty"
