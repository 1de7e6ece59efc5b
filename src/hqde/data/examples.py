"""Labelled rows with random access: what every reader, partitioner and training loop speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import default_collate

from hqde.errors import DataError, PreconditionError
from hqde.seeding import seeded

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model is called with, rows first: ``model(x)``, ``model(*x)`` or ``model(**x)``."""

Task: TypeAlias = Literal["classification", "regression"]

LABEL_KEYS = ("labels", "label")
"""Where a dict batch keeps its targets (the Hugging Face habit), first match wins."""

_READ_ROWS = 1024  # rows per read when a map-style dataset's targets are collected


class Batch(NamedTuple):
    """Some rows: inputs, and targets (k,) of int64 class ids or float32 values."""

    inputs: Inputs
    targets: Tensor


class Examples(Protocol):
    """Random access to labelled rows."""

    @property
    def targets(self) -> Tensor:
        """All targets, (n,): int64 class ids, or float32 for regression."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, index: Tensor) -> Batch:
        """The rows that ``index`` (k,) int64 names, in that order, repeats allowed."""
        ...


def tensors_of(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors of ``inputs`` by name: dict keys, tuple positions, or ``""`` for a single tensor.

    >>> list(tensors_of((torch.zeros(2), torch.ones(2))))
    ['0', '1']
    """
    if isinstance(inputs, Tensor):
        return {"": inputs}
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return {str(position): tensor for position, tensor in enumerate(inputs)}


def num_rows(inputs: Inputs) -> int:
    """How many rows ``inputs`` holds.

    Raises:
        DataError: there is no tensor, a tensor has no row dimension, or two tensors differ in rows.

    >>> num_rows({"a": torch.zeros(3, 2), "b": torch.zeros(3)})
    3
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors_of(inputs).items():
        if tensor.ndim == 0:
            raise DataError(
                f"inputs{_place(name)} is a single number; inputs need rows as their first dimension"
            )
        sizes[name] = len(tensor)
    if not sizes:
        raise DataError("inputs hold no tensor; give at least one")
    if len(set(sizes.values())) > 1:
        raise DataError(f"inputs differ in their number of rows: {sizes}; every tensor needs the same")
    return next(iter(sizes.values()))


def take_rows(inputs: Inputs, index: Tensor) -> Inputs:
    """The rows ``index`` (k,) of every tensor in ``inputs``.

    >>> take_rows((torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])), torch.tensor([2, 0]))
    (tensor([3, 1]), tensor([6, 4]))
    """
    if isinstance(inputs, Tensor):
        return inputs.index_select(0, index)
    if isinstance(inputs, Mapping):
        return {name: tensor.index_select(0, index) for name, tensor in inputs.items()}
    return tuple(tensor.index_select(0, index) for tensor in inputs)


def move_inputs(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on ``device``."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return tuple(tensor.to(device) for tensor in inputs)


def cast_targets(targets: Tensor, task: Task) -> Tensor:
    """Targets as training wants them: (n,) int64 class ids, or (n,) float32 for regression.

    A trailing dimension of one is dropped. Float class ids are taken when every one is a whole number.

    Raises:
        DataError: wrong shape, or class ids that are not whole numbers (the count and the first row).

    >>> cast_targets(torch.tensor([[0.0], [2.0]]), "classification")
    tensor([0, 2])
    """
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets.squeeze(1)
    if targets.ndim != 1:
        raise DataError(
            f"targets have shape {tuple(targets.shape)}, but one target per row, (n,), is needed; "
            "turn one-hot rows into class ids with argmax(dim=1)"
        )
    if targets.is_complex():
        raise DataError(f"targets are {targets.dtype}; give real numbers")
    if task == "regression":
        return targets.to(torch.float32)
    if not targets.is_floating_point():
        return targets.to(torch.int64)
    bad = (targets != targets.round()) | ~targets.isfinite()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise DataError(
            f"{int(bad.sum())} of {len(targets)} class labels are not whole numbers "
            f"(first: {float(targets[row])} in row {row}); use task='regression' for real-valued targets"
        )
    return targets.to(torch.int64)


class TensorExamples:
    """Rows of tensors that are all in memory.

    Args:
        inputs: tensor, tuple or dict of tensors, rows first; images as (n, c, h, w), uint8 or float.
        targets: (n,) integers (kept as int64) or floats (kept as float32).

    Raises:
        DataError: inputs and targets differ in length.

    >>> examples = TensorExamples(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> examples.fetch(torch.tensor([2])).inputs
    tensor([[0., 0., 1.]])
    """

    side_by_side = True

    def __init__(self, inputs: Inputs, targets: Tensor) -> None:
        task: Task = "regression" if targets.is_floating_point() else "classification"
        self.inputs = inputs
        self._targets = cast_targets(targets, task)
        rows = num_rows(inputs)
        if rows != len(self._targets):
            raise DataError(
                f"inputs have {rows} rows and targets {len(self._targets)}; both need the same number"
            )

    @property
    def targets(self) -> Tensor:
        """All targets, (n,)."""
        return self._targets

    def __len__(self) -> int:
        return len(self._targets)

    def fetch(self, index: Tensor) -> Batch:
        """The rows that ``index`` (k,) int64 names."""
        return Batch(take_rows(self.inputs, index), self._targets[index])


class MapExamples:
    """Rows of a torch map-style ``Dataset`` whose items are ``(x, y)``, ``(x1, x2, y)`` or dicts with labels.

    Items are read when they are fetched, so a dataset may be larger than memory. The targets are read once,
    by going through the dataset, the first time they are asked for.

    Args:
        dataset: has ``__len__`` and ``__getitem__`` (and may have ``__getitems__``, as torch's loader uses).
        collate_fn: list of items to one batch; torch's default collation if None.
        task: how targets are cast.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        task: Task = "classification",
    ) -> None:
        for method in ("__len__", "__getitem__"):
            if not hasattr(dataset, method):
                raise DataError(f"{type(dataset).__name__} has no {method}; a map-style dataset needs it")
        self.dataset = dataset
        self.collate_fn = default_collate if collate_fn is None else collate_fn
        self.task: Task = task
        self._targets: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """All targets, (n,); the first call reads the whole dataset once."""
        if self._targets is None and len(self) == 0:
            self._targets = cast_targets(torch.empty(0), self.task)
        elif self._targets is None:
            # seeded: a user's random transforms must not move the caller's streams
            with seeded(0, "data", "read targets"):
                parts = [self.fetch(rows).targets for rows in torch.arange(len(self)).split(_READ_ROWS)]
            self._targets = torch.cat(parts)
        return self._targets

    def with_task(self, task: Task) -> MapExamples:
        """The same rows with targets cast for ``task``; targets that were read already are kept."""
        if task == self.task:
            return self
        other = MapExamples(self.dataset, self.collate_fn, task=task)
        other._targets = None if self._targets is None else cast_targets(self._targets, task)
        return other

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, index: Tensor) -> Batch:
        """The rows that ``index`` (k,) int64 names, read and collated now."""
        rows = index.tolist()
        if hasattr(self.dataset, "__getitems__"):
            items = list(self.dataset.__getitems__(rows))
        else:
            items = [self.dataset[row] for row in rows]
        if self.collate_fn is not default_collate:
            return split_batch(self.collate_fn(items), task=self.task)
        try:
            batch = default_collate(items)
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"items of {type(self.dataset).__name__} do not form a batch: {error}; "
                "give a collate_fn that pads them or turns them into tensors"
            ) from error
        return split_batch(batch, task=self.task)


class SubsetExamples:
    """The rows ``index`` (k,) int64 of other examples; repeats are allowed.

    >>> base = TensorExamples(torch.arange(4.0).reshape(4, 1), torch.tensor([0, 1, 0, 1]))
    >>> SubsetExamples(base, torch.tensor([3, 1])).targets
    tensor([1, 1])
    """

    def __init__(self, examples: Examples, index: Tensor) -> None:
        if index.ndim != 1 or index.dtype != torch.int64:
            raise PreconditionError(f"index must be (k,) int64, not {tuple(index.shape)} {index.dtype}")
        if len(index) and (index.min() < 0 or index.max() >= len(examples)):
            low, high = int(index.min()), int(index.max())
            raise PreconditionError(
                f"index spans {low}..{high}, but there are {len(examples)} rows (0-based)"
            )
        self.examples: Examples = examples
        self.index = index
        if isinstance(examples, SubsetExamples):  # one hop instead of a chain
            self.examples, self.index = examples.examples, examples.index[index]

    @property
    def side_by_side(self) -> bool:
        """Whether threads may fetch rows at the same time."""
        return reads_side_by_side(self.examples)

    @property
    def targets(self) -> Tensor:
        """The subset's targets, (k,)."""
        return self.examples.targets[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: Tensor) -> Batch:
        """The subset's rows that ``index`` (k,) int64 names."""
        return self.examples.fetch(self.index[index])


def reads_side_by_side(examples: Examples) -> bool:
    """Whether threads may fetch rows at the same time: from tensors, not with code of the user's.

    What says nothing of itself (an attribute ``side_by_side``) is read by one thread at a time.

    >>> rows = TensorExamples(torch.zeros(2, 1), torch.tensor([0, 1]))
    >>> reads_side_by_side(SubsetExamples(rows, torch.tensor([1]))), reads_side_by_side(MapExamples([]))
    (True, False)
    """
    return bool(getattr(examples, "side_by_side", False))


def split_batch(batch: Any, *, task: Task) -> Batch:
    """A collated batch as inputs and targets: the last of a tuple, or ``labels``/``label`` of a dict.

    Raises:
        DataError: the batch is neither, or holds no targets.

    >>> batch = (torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0, 1]))
    >>> split_batch(batch, task="classification").targets
    tensor([0, 1])
    """
    if isinstance(batch, Batch):
        return Batch(batch.inputs, cast_targets(batch.targets, task))
    if isinstance(batch, Mapping):
        key = next((key for key in LABEL_KEYS if key in batch), None)
        if key is None:
            raise DataError(
                f"a dict batch needs its targets under 'labels' or 'label'; it has {sorted(batch)}"
            )
        entries = {name: _tensor(value, name) for name, value in batch.items() if name not in LABEL_KEYS}
        return Batch(entries, cast_targets(_tensor(batch[key], key), task))
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes) and len(batch) >= 2:
        *inputs, targets = batch
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):  # ({"ids": …, "mask": …}, y)
            named: Inputs = {name: _tensor(value, name) for name, value in inputs[0].items()}
            return Batch(named, cast_targets(_tensor(targets, "targets"), task))
        tensors = tuple(_tensor(value, str(position)) for position, value in enumerate(inputs))
        return Batch(
            tensors[0] if len(tensors) == 1 else tensors, cast_targets(_tensor(targets, "targets"), task)
        )
    raise DataError(
        f"a batch of type {type(batch).__name__} holds no targets; "
        "items must be (x, y), (x1, x2, y) or dicts with 'labels'"
    )


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise DataError(
            f"batch entry '{name}' is a {type(value).__name__}, not a tensor; fix it in collate_fn"
        )
    return value


def _place(name: str) -> str:
    return f"[{name!r}]" if name else ""
