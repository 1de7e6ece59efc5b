"""What a reader hands over: rows as the files hold them, before any split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hqde.data.examples import Batch, Examples, Inputs, SubsetExamples, Task, TensorExamples


class EncodedExamples:
    """Rows that are still encoded (JPEG bytes, image files): known targets, inputs decoded when fetched.

    Args:
        targets: (n,) all targets.
        decode: index (k,) int64 to the inputs of those rows.
    """

    def __init__(self, targets: Tensor, decode: Callable[[Tensor], Inputs]) -> None:
        self._targets = targets
        self.decode = decode

    @property
    def targets(self) -> Tensor:
        """All targets, (n,)."""
        return self._targets

    def __len__(self) -> int:
        return len(self._targets)

    def fetch(self, index: Tensor) -> Batch:
        """The rows ``index`` (k,), decoded now."""
        return Batch(self.decode(index), self._targets[index])


@dataclass(frozen=True)
class Source:
    """One data set as read.

    Args:
        name: short, for reports.
        task: what the targets say, or what the caller asked for.
        train: all rows, or those of the training file.
        validation: rows that the source itself sets apart for validation, if it does.
        test: the rows of the source's own test file, if it has one.
        classes: class names in the order of the class ids, if the source names them.
    """

    name: str
    task: Task
    train: Examples
    validation: Examples | None = None
    test: Examples | None = None
    classes: tuple[str, ...] | None = None


def select(examples: Examples, index: Tensor) -> Examples:
    """The rows ``index`` (k,): of encoded examples decoded once for good, of any others a view."""
    if isinstance(examples, EncodedExamples):
        return TensorExamples(*examples.fetch(index))
    return SubsetExamples(examples, index)


def decoded(examples: Examples) -> Examples:
    """All rows, decoded for good if they are still encoded."""
    return (
        select(examples, torch.arange(len(examples))) if isinstance(examples, EncodedExamples) else examples
    )
