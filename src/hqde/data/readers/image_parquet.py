"""Parquet files of images, as the Hugging Face hub stores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hqde.data.examples import Task
from hqde.data.readers.columns import choose_target, encode_targets
from hqde.data.readers.files import load_pyarrow
from hqde.data.readers.images import decode_images
from hqde.data.readers.parquet_file import column_names, column_targets, read_table
from hqde.data.source import EncodedExamples
from hqde.errors import DataError

IMAGE_NAMES = ("img", "image")


def read_image_parquet(
    paths: Sequence[Path], *, task: Task | None = None, target: str | None = None
) -> tuple[EncodedExamples, Task, tuple[str, ...] | None]:
    """Images of a column ``img`` or ``image`` (struct of ``bytes`` and ``path``, or bytes) and their labels.

    Args:
        paths: files that together make one part, in order.
        task: overrides what the target's values say.
        target: the target's column.

    Returns:
        Rows that are decoded when fetched, the task, and class names if the file tells them.
    """
    names = column_names(paths[0])
    image_name = image_column(names)
    if image_name is None:
        raise DataError(f"{paths[0]} has no column 'img' or 'image', only {names}; check which file this is")
    target_name = choose_target(names, target, path=paths[0])
    table = read_table(paths, [image_name, target_name])
    decode = _decoder(table.column(image_name), path=paths[0], column=image_name)
    what = f"{paths[0]}: target column '{target_name}'"
    targets, found, classes = encode_targets(
        column_targets(table.column(target_name), what=what), task=task, what=what
    )
    if found == "classification" and classes is None:
        classes = _hub_classes(table.schema.metadata, target_name)
    return EncodedExamples(targets, decode), found, classes


def read_images(path: Path, column: str) -> Tensor:
    """The images of one column, decoded."""
    images = read_table([path], [column]).column(column)
    return _decoder(images, path=path, column=column)(torch.arange(len(images)))


def image_column(names: Sequence[str]) -> str | None:
    """Which column holds images, if one does.

    >>> image_column(["label", "image"])
    'image'
    """
    return next((name for name in IMAGE_NAMES if name in names), None)


def _decoder(images: Any, *, path: Path, column: str) -> Callable[[Tensor], Tensor]:
    """A function from row numbers (k,) to their images, (k, c, h, w)."""
    pyarrow, _ = load_pyarrow()
    kind = images.type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        images = pyarrow.chunked_array(
            [chunk.field("bytes") for chunk in images.chunks], type=pyarrow.binary()
        )
    elif not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise DataError(f"{path}: column '{column}' holds {kind}, not image bytes; store encoded images")
    if images.null_count:
        first = images.is_null().to_pylist().index(True)
        raise DataError(
            f"{path}: {images.null_count} of {len(images)} rows have no image bytes "
            f"(first: row {first}); embed the images in the file"
        )

    def decode(index: Tensor) -> Tensor:
        rows = index.tolist()
        encoded = images.take(pyarrow.array(rows, type=pyarrow.int64())).to_pylist()
        return decode_images(encoded, describe=lambda position: f"{path}: the image of row {rows[position]}")

    return decode


def _hub_classes(metadata: dict[bytes, bytes] | None, target_name: str) -> tuple[str, ...] | None:
    """Class names as the Hugging Face `datasets` library notes them in the file, if it wrote it."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[target_name]["names"])
    except (KeyError, ValueError, TypeError):
        return None
