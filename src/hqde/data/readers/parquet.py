"""``FILE.parquet``: a table of numbers, or images as the Hugging Face hub stores them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hqde.data.examples import Task, TensorExamples
from hqde.data.readers.columns import choose_features, choose_target, encode_targets
from hqde.data.readers.image_parquet import image_column, read_image_parquet, read_images
from hqde.data.readers.parquet_file import column_names, column_numbers, column_targets, read_table
from hqde.data.source import Source


def read_parquet(path: Path, *, task: Task | None = None, target: str | None = None) -> Source:
    """A parquet file: images if it has a column ``img`` or ``image``, else a table of numbers.

    Args:
        path: the file.
        task: overrides what the target's values say.
        target: the target's column; by default label, target, class or y, else the last.

    Raises:
        DataError: missing, truncated, a feature column that is not numeric, or missing values.
        MissingExtraError: pyarrow (or, for images, pillow) is not installed.
    """
    names = column_names(path)
    if image_column(names) is not None:
        examples, found, classes = read_image_parquet([path], task=task, target=target)
        return Source(name=path.stem, task=found, train=examples, classes=classes)
    target_name = choose_target(names, target, path=path)
    what = f"{path}: target column '{target_name}'"
    values = column_targets(read_table([path], [target_name]).column(target_name), what=what)
    targets, found, classes = encode_targets(values, task=task, what=what)
    inputs = _features(path, [name for name in names if name != target_name])
    return Source(name=path.stem, task=found, train=TensorExamples(inputs, targets), classes=classes)


def read_parquet_inputs(path: Path, *, num_features: int | None, target: str | None = None) -> Tensor:
    """The inputs of a parquet file that need not have targets.

    Args:
        path: the file.
        num_features: how many columns of a table are features; of no account for images.
        target: a column to leave out.
    """
    names = column_names(path)
    image_name = image_column(names)
    if image_name is not None:
        return read_images(path, image_name)
    return _features(path, choose_features(names, target, num_features=num_features, path=path))


def _features(path: Path, names: Sequence[str]) -> Tensor:
    table = read_table([path], names)
    columns = [column_numbers(table.column(name), what=f"{path}: column '{name}'") for name in names]
    return torch.from_numpy(np.stack(columns, axis=1))
