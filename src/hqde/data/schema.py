"""What a data set is: task, kind of input, classes, shape; and the checks that make it trainable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hqde.data.examples import Examples, Inputs, Task, TensorExamples, num_rows, tensors_of
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
    if task == "classification":
        check_classes_differ(examples.targets)
    check_inputs(examples)
    kind, shape = describe_inputs(examples)
    return Schema(task=task, kind=kind, classes=names, input_shape=shape)


def describe_inputs(examples: Examples) -> tuple[Kind, tuple[int, ...] | None]:
    """The kind of input and the shape of one example, from the first row."""
    with seeded(
        0, "data", "describe inputs"
    ):  # a user's random transforms must not move the caller's streams
        inputs = examples.fetch(torch.zeros(1, dtype=torch.int64)).inputs
    if not isinstance(inputs, Tensor):
        return "other", None
    kinds: dict[int, Kind] = {4: "image", 2: "tabular"}
    return kinds.get(inputs.ndim, "other"), tuple(inputs.shape[1:])


def check_targets(targets: Tensor, *, task: Task, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Refuse targets that cannot be trained on; the class names (``()`` for regression).

    Raises:
        DataError: NaN or infinity; floats where class ids are needed or the other way round; class ids that
            are negative, beyond ``classes``, or so large that they cannot be class ids.
    """
    bad = ~torch.isfinite(targets)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(targets)} targets are NaN or infinite (first: row {_first(bad)}); "
            "remove those rows"
        )
    if targets.is_floating_point() != (task == "regression"):
        raise DataError(
            f"{task} targets are {targets.dtype}; pass them through as_examples(…, task='{task}')"
        )
    if task == "regression":
        return ()
    num_classes = int(targets.max()) + 1 if classes is None else len(classes)
    if (targets < 0).any():
        raise DataError(_out_of_range(targets, targets < 0, "negative"))
    if (targets >= num_classes).any():
        what = f"beyond the {num_classes} classes 0 to {num_classes - 1}"
        raise DataError(_out_of_range(targets, targets >= num_classes, what))
    if classes is None and num_classes > max(_MOST_UNSEEN, len(targets)):
        raise DataError(
            f"labels out of range: label {num_classes - 1} in row {int(targets.argmax())} would make "
            f"{num_classes} classes of {len(targets)} rows; number the classes from 0, "
            "or use task='regression'"
        )
    return tuple(classes) if classes is not None else tuple(str(label) for label in range(num_classes))


def check_classes_differ(targets: Tensor) -> None:
    """Refuse class ids that are all the same."""
    if (targets == targets[0]).all():
        raise DataError(
            f"only one class: all {len(targets)} labels are {int(targets[0])}; "
            "classification needs at least 2"
        )


def check_inputs(examples: Examples) -> None:
    """Read every row once and refuse inputs that are not finite or change shape between rows."""
    num_bad, first_bad = 0, -1
    shapes: set[tuple[int, ...]] = set()
    with seeded(0, "data", "check inputs"):  # a user's random transforms must not move the caller's streams
        for start, inputs in _chunks(examples):
            bad = _non_finite_rows(inputs)
            if num_bad == 0 and bad.any():
                first_bad = start + _first(bad)
            num_bad += int(bad.sum())
            if isinstance(inputs, Tensor):
                shapes.add(tuple(inputs.shape[1:]))
    if len(shapes) > 1:
        raise DataError(f"rows differ in shape: {sorted(shapes)}; bring all rows to one shape")
    if num_bad:
        raise DataError(
            f"{num_bad} of {len(examples)} rows have NaN or infinite inputs (first: row {first_bad}); "
            "remove or fill those values"
        )


def _chunks(examples: Examples) -> Iterator[tuple[int, Inputs]]:
    """All inputs in order, some rows at a time: the first row's number, the rows."""
    if isinstance(examples, TensorExamples):
        yield 0, examples.inputs
        return
    for rows in torch.arange(len(examples)).split(_CHECK_ROWS):
        yield int(rows[0]), examples.fetch(rows).inputs


def _non_finite_rows(inputs: Inputs) -> Tensor:
    """Which rows hold a NaN or an infinity, (n,) bool."""
    bad = torch.zeros(num_rows(inputs), dtype=torch.bool)
    for tensor in tensors_of(inputs).values():
        if tensor.is_floating_point() and tensor.numel():
            bad |= ~torch.isfinite(tensor).reshape(len(tensor), -1).all(dim=1)
    return bad


def _out_of_range(targets: Tensor, bad: Tensor, what: str) -> str:
    row = _first(bad)
    return (
        f"labels out of range: {int(bad.sum())} of {len(targets)} are {what} (first: {int(targets[row])} "
        f"in row {row}); number the classes from 0, or use task='regression' for real-valued targets"
    )


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0])
