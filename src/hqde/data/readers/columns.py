"""From columns and arrays of a table to tensors: which is the target, what its values mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hqde.data.examples import Task, cast_targets
from hqde.errors import DataError, did_you_mean

TARGET_NAMES = ("label", "target", "class", "y")


def choose_target(names: Sequence[str], target: str | None, *, path: object) -> str:
    """The target column: ``target``, else the first of label, target, class, y that is there, else the last.

    >>> choose_target(["a", "Class", "b"], None, path="t.csv")
    'Class'
    """
    refuse_repeated(names, path=path)
    if len(names) < 2:
        raise DataError(f"{path} has {len(names)} columns; it needs at least one feature and a target")
    if target is not None:
        if target not in names:
            raise DataError(
                f"{path} has no column '{target}' to use as target; {did_you_mean(target, names)}"
            )
        return target
    by_word = {name.lower(): name for name in reversed(names)}
    return next((by_word[word] for word in TARGET_NAMES if word in by_word), names[-1])


def refuse_repeated(names: Sequence[str], *, path: object) -> None:
    """Refuse a table in which two columns share a name."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has more than one column '{repeated[0]}'; give every column its own name")


def choose_features(
    names: Sequence[str], target: str | None, *, num_features: int | None, path: object
) -> list[str]:
    """The feature columns of a table that may have a target column or not.

    With one column more than ``num_features`` the target is left out, chosen as for training.

    Raises:
        DataError: neither ``num_features`` columns nor one more.

    >>> choose_features(["a", "b", "y"], None, num_features=2, path="t.csv")
    ['a', 'b']
    >>> choose_features(["a", "b", "y"], None, num_features=3, path="t.csv")
    ['a', 'b', 'y']
    """
    without = [name for name in names if name != target] if target is not None else list(names)
    if len(without) == len(names) and len(names) == (num_features or 0) + 1:
        chosen = choose_target(names, target, path=path)
        without = [name for name in names if name != chosen]
    if len(without) != num_features:
        raise DataError(
            f"{path} has {len(without)} feature columns, but the model was trained on {num_features}; "
            "give the columns of the training table in the same order"
        )
    return without


def encode_targets(
    values: npt.NDArray[Any], *, task: Task | None, what: str
) -> tuple[Tensor, Task, tuple[str, ...] | None]:
    """Targets as a tensor, the task they ask for, and the class names if they are words.

    Words become class ids in sorted order. Numbers are class ids if all are whole, else regression targets;
    ``task`` overrides that.

    Args:
        values: (n,) numbers, booleans or strings.
        task: what the caller wants, or None to infer.
        what: names the column in errors.

    Raises:
        DataError: words where regression is asked for, missing values, fractions where classes are asked for.

    >>> encode_targets(np.array(["dog", "cat", "dog"]), task=None, what="column 'pet'")
    (tensor([1, 0, 1]), 'classification', ('cat', 'dog'))
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{what} has shape {values.shape}, but one target per row, (n,), is needed")
    if values.dtype.kind in "USOb":
        if task == "regression":
            raise DataError(
                f"{what} holds words such as '{values[0]}'; regression needs numbers, "
                "use task='classification'"
            )
        words = values.astype(str)
        names, ids = np.unique(words, return_inverse=True)
        return torch.from_numpy(ids.astype(np.int64)), "classification", tuple(str(name) for name in names)
    if values.dtype.kind not in "iuf":
        raise DataError(f"{what} holds {values.dtype}; targets must be numbers or words")
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(
            f"{what}: {int(bad.sum())} of {len(values)} targets are NaN or infinite "
            f"(first: row {int(bad.argmax())}); remove those rows"
        )
    is_float = values.dtype.kind == "f"
    whole = not is_float or bool((values == np.round(values)).all())
    found: Task = task or ("classification" if whole else "regression")
    numbers = torch.from_numpy(values.astype(np.float64 if is_float else np.int64))
    try:
        return cast_targets(numbers, found), found, None
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def as_features(values: npt.NDArray[Any], *, what: str) -> Tensor:
    """Input numbers as a tensor: pixels stay uint8, all else becomes float32; images get channels first.

    Rank 3 of bytes is grey images (n, h, w); rank 4 with 1, 3 or 4 last and not second is (n, h, w, c). Both
    become (n, c, h, w).

    Raises:
        DataError: not numbers, or no row dimension.

    >>> as_features(np.zeros((2, 8, 6, 3), dtype=np.uint8), what="x").shape
    torch.Size([2, 3, 8, 6])
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{what} holds {values.dtype}, not numbers; encode it as numbers first")
    if values.ndim < 2:
        raise DataError(f"{what} has shape {values.shape}; inputs need rows and at least one feature, (n, d)")
    if values.ndim == 3 and values.dtype == np.uint8:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
        values = values.transpose(0, 3, 1, 2)
    pixels = values.ndim == 4 and values.dtype.kind in "biu" and values.size > 0
    keep = pixels and int(values.min()) >= 0 and int(values.max()) <= 255
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.uint8 if keep else np.float32))
