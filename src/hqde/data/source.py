"""What a reader hands over: rows as the files hold them, before any split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    @property
    def test_or_all(self) -> Examples:
        """The rows to judge a trained model on: the source's own test part if it has one, else all rows."""
        return self.train if self.test is None else self.test


def decode_parts(parts: Sequence[Examples]) -> list[Examples]:
    """The parts of one data set, with those that are still encoded (whole or chosen rows) decoded for good.

    If one of these has colour and another only grey images, the grey ones get three equal channels.
    """
    encoded = [part for part in parts if is_encoded(part)]
    batches = {id(part): part.fetch(torch.arange(len(part))) for part in encoded}
    images = [batch.inputs for batch in batches.values() if isinstance(batch.inputs, Tensor)]
    channels = max((inputs.shape[1] for inputs in images if inputs.ndim == 4), default=0)
    done: list[Examples] = []
    for part in parts:
        if id(part) not in batches:
            done.append(part)
            continue
        inputs, targets = batches[id(part)]
        if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] < channels:
            inputs = inputs.expand(-1, channels, -1, -1).contiguous()
        done.append(TensorExamples(inputs, targets))
    return done


def is_encoded(part: Examples) -> bool:
    """Whether fetching rows of ``part`` means decoding them."""
    return isinstance(part.examples if isinstance(part, SubsetExamples) else part, EncodedExamples)
