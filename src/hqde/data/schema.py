"""What a data set is: task, kind of input, classes, shape; and the checks that make it trainable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

from hqde.data.examples import Examples, Inputs, Task, tensors_of
from hqde.errors import ConfigError, DataError
from hqde.seeding import seeded

Kind: TypeAlias = Literal["image", "tabular", "other"]

_CHECK_ROWS = 2048  # rows per read of the finiteness check
_MOST_UNSEEN = 1000  # labels above both this and the row count are taken for a mistake


@dataclass(frozen=True)
class Schema:
    """What a data set's rows are.

    Args:
        task: ``"classification"`` or ``"regression"``.
        kind: ``"image"`` (c, h, w), ``"tabular"`` (d,) or ``"other"``.
        classes: names in the order of the class ids; ``()`` for regression.
        input_shape: of one example, without the row dimension; None when inputs are a dict or tuple.

    >>> Schema("classification", "image", ("cat", "dog"), (3, 32, 32)).num_classes
    2
    """

    task: Task
    kind: Kind
    classes: tuple[str, ...]
    input_shape: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ConfigError(f"task is {self.task!r}; use 'classification' or 'regression'")
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind is {self.kind!r}; use 'image', 'tabular' or 'other'")
        if self.task == "regression" and self.classes:
            raise ConfigError(
                f"regression has no classes, but {len(self.classes)} were given; leave classes empty"
            )
        if self.task == "classification" and len(self.classes) < 2:
            raise ConfigError(f"classification needs at least 2 classes, not {len(self.classes)}")

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 for regression."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives an equal schema back."""
        shape = None if self.input_shape is None else list(self.input_shape)
        return {"task": self.task, "kind": self.kind, "classes": list(self.classes), "input_shape": shape}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `to_dict` wrote.

        >>> schema = Schema("regression", "tabular", (), (4,))
        >>> Schema.from_dict(schema.to_dict()) == schema
        True
        """
        shape = values["input_shape"]
        return cls(
            task=values["task"],
            kind=values["kind"],
            classes=tuple(values["classes"]),
            input_shape=None if shape is None else tuple(int(size) for size in shape),
        )


def infer_schema(examples: Examples, *, task: Task, classes: Sequence[str] | None = None) -> Schema:
    """The schema of ``examples``, after checking every row.

    Args:
        examples: the rows; all of them are read once.
        task: ``"classification"`` or ``"regression"``.
        classes: names by class id; ``"0"``, ``"1"``, … up to the largest label if None.

    Raises:
        DataError: no rows; NaN or infinity in inputs or targets; class labels that are negative, beyond
            ``classes``, not whole numbers, or all the same.

    >>> from hqde.data.examples import TensorExamples
    >>> infer_schema(TensorExamples(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])), task="classification")
    Schema(task='classification', kind='tabular', classes=('0', '1'), input_shape=(2,))
    """
    if len(examples) == 0:
        raise DataError("the data set is empty: 0 rows; give at least one row per class")
    names = check_targets(examples.targets, task=task, classes=classes)
    shape, kind = check_inputs(examples)
    return Schema(task=task, kind=kind, classes=names, input_shape=shape)


def check_targets(targets: Tensor, *, task: Task, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Refuse targets that cannot be trained on; the class names (``()`` for regression)."""
    bad = ~torch.isfinite(targets)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise DataError(
            f"{int(bad.sum())} of {len(targets)} targets are NaN or infinite (first in row {row}); remove those rows"
        )
    if task == "regression":
        if not targets.is_floating_point():
            raise DataError(
                f"regression targets are {targets.dtype}; pass them through as_examples(…, task=task)"
            )
        return ()
    if targets.is_floating_point():
        raise DataError(
            f"class labels are {targets.dtype}; pass whole numbers through as_examples(…, task=task)"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0:
        rows = (targets < 0).nonzero()
        raise DataError(
            f"labels out of range: {len(rows)} of {len(targets)} are negative (first: {int(targets[rows[0]])} in "
            f"row {int(rows[0])}); class labels start at 0, real-valued targets need task='regression'"
        )
    check_label_range(targets, num_classes=None if classes is None else len(classes))
    if low == high:
        raise DataError(
            f"only one class: all {len(targets)} labels are {low}; classification needs at least 2"
        )
    return tuple(classes) if classes is not None else tuple(str(label) for label in range(high + 1))


def check_label_range(targets: Tensor, *, num_classes: int | None) -> None:
    """Refuse class labels beyond ``num_classes``, or, when that is unknown, absurdly large ones."""
    high = int(targets.max())
    if num_classes is not None and high >= num_classes:
        rows = (targets >= num_classes).nonzero()
        raise DataError(
            f"labels out of range: {len(rows)} of {len(targets)} are beyond the {num_classes} classes "
            f"0..{num_classes - 1} (first: {int(targets[rows[0]])} in row {int(rows[0])}); correct the labels"
        )
    if num_classes is None and high >= max(_MOST_UNSEEN, len(targets)):
        raise DataError(
            f"labels out of range: label {high} would make {high + 1} classes of {len(targets)} rows; "
            "number the classes from 0, or use task='regression'"
        )


def check_inputs(examples: Examples) -> tuple[tuple[int, ...] | None, Kind]:
    """Refuse inputs that are not finite or change shape; the shape of one example and its kind."""
    shape: tuple[int, ...] | None = None
    kind: Kind = "other"
    num_bad, first_bad, start = 0, -1, 0
    with seeded(0, "data", "check inputs"):  # a user's random transforms must not move the caller's streams
        for rows in torch.arange(len(examples)).split(_CHECK_ROWS):
            inputs = examples.fetch(rows).inputs
            bad = _non_finite_rows(inputs, len(rows))
            if bad.any():
                first_bad = start + int(bad.nonzero()[0]) if num_bad == 0 else first_bad
                num_bad += int(bad.sum())
            start += len(rows)
            if isinstance(inputs, Tensor):
                now = tuple(inputs.shape[1:])
                if shape is not None and now != shape:
                    raise DataError(f"rows differ in shape: {shape} and {now}; bring all rows to one shape")
                shape = now
                kind = cast(Kind, {4: "image", 2: "tabular"}.get(inputs.ndim, "other"))
    if num_bad:
        raise DataError(
            f"{num_bad} of {len(examples)} rows have NaN or infinite inputs (first: row {first_bad}); "
            "remove or fill those values"
        )
    return shape, kind


def _non_finite_rows(inputs: Inputs, num_rows: int) -> Tensor:
    """Which rows hold a NaN or an infinity, (n,) bool."""
    bad = torch.zeros(num_rows, dtype=torch.bool)
    for tensor in tensors_of(inputs).values():
        if tensor.is_floating_point():
            bad |= ~torch.isfinite(tensor).reshape(num_rows, -1).all(dim=1)
    return bad
