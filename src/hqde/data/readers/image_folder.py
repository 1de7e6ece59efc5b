"""An image folder: one sub-folder per class, all images of one size."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hqde.data.readers.files import existing_folder
from hqde.data.readers.images import decode_images
from hqde.data.source import EncodedExamples, Source
from hqde.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
VALIDATION_NAMES = ("validation", "val")


def read_image_folder(folder: Path) -> Source:
    """Images of ``folder/class/*``, or of ``folder/train/class/*`` with ``test``, ``validation`` beside it.

    Classes are the names of the (training) sub-folders in sorted order; names that begin with a dot, and
    files that are no images, are left out.

    Raises:
        DataError: no class folders, a class without images, or a test class that training does not have.
    """
    parts = {entry.name: entry for entry in _subfolders(existing_folder(folder))}
    if "train" not in parts:
        if not parts:
            raise DataError(_no_classes(folder))
        classes = tuple(parts)
        return Source(
            name=folder.resolve().name,
            task="classification",
            train=_read_part(folder, classes),
            classes=classes,
        )
    train = parts["train"]
    classes = tuple(entry.name for entry in _subfolders(train))
    if not classes:
        raise DataError(_no_classes(train))
    validation = next((parts[name] for name in VALIDATION_NAMES if name in parts), None)
    return Source(
        name=folder.resolve().name,
        task="classification",
        train=_read_part(train, classes),
        validation=None if validation is None else _read_part(validation, classes),
        test=_read_part(parts["test"], classes) if "test" in parts else None,
        classes=classes,
    )


def read_image_folder_inputs(folder: Path) -> Tensor:
    """All images of ``folder`` (of its ``test`` if it has ``train`` and ``test``), flat or in sub-folders.

    Sub-folders come in sorted order, so that a labelled folder gives its rows as `read_image_folder` does.
    """
    parts = {entry.name: entry for entry in _subfolders(existing_folder(folder))}
    folder = parts["test"] if "train" in parts and "test" in parts else parts.get("train", folder)
    places = _subfolders(folder) or [folder]
    files = [file for place in places for file in sorted(place.iterdir()) if _is_image(file)]
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}); add some")
    return decode_images(files, describe=lambda position: str(files[position]))


def _read_part(folder: Path, classes: tuple[str, ...]) -> EncodedExamples:
    files: list[Path] = []
    labels: list[int] = []
    for entry in _subfolders(folder):
        if entry.name not in classes:
            raise DataError(
                f"{entry} is a class that the training folder does not have ({', '.join(classes)})"
            )
        found = sorted(file for file in entry.iterdir() if _is_image(file))
        if not found:
            raise DataError(
                f"class folder {entry} holds no images ({', '.join(sorted(SUFFIXES))}); add some or remove it"
            )
        files += found
        labels += [classes.index(entry.name)] * len(found)
    if not files:
        raise DataError(_no_classes(folder))

    def decode(index: Tensor) -> Tensor:
        chosen = [files[row] for row in index.tolist()]
        return decode_images(chosen, describe=lambda position: str(chosen[position]))

    return EncodedExamples(torch.tensor(labels, dtype=torch.int64), decode)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _no_classes(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())[:5]
    if any("idx3-ubyte" in name for name in names):
        return f"{folder} holds IDX files, not class folders; write fashion-mnist:{folder}"
    if any(name.endswith(".parquet") or name.startswith("data_batch") for name in names):
        return (
            f"{folder} holds {', '.join(names)}, not class folders; write cifar10:{folder} or name one file"
        )
    return f"{folder} holds no class folders; an image folder needs one sub-folder of images per class"
