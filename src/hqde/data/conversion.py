"""From whatever holds labelled rows to `Examples`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from hqde.data.examples import (
    LABEL_KEYS,
    Batch,
    Examples,
    Inputs,
    MapExamples,
    SubsetExamples,
    Task,
    TensorExamples,
    cast_targets,
    split_batch,
    tensors_of,
)
from hqde.errors import DataError

_ITEMS_PER_BATCH = 1024  # items of a bare iterable dataset collated at once


def as_examples(data: Any, *, task: Task = "classification") -> Examples:
    """Labelled rows in any usual shape as `Examples`.

    Args:
        data: one of

            - any `Examples`, given back as it is (float class ids are turned into int64);
            - ``(X, y)`` of tensors, arrays or lists; X may be a tuple or dict of them;
            - a dict of tensors or arrays with ``"labels"`` or ``"label"``;
            - a map-style ``Dataset``, read row by row when needed (a ``TensorDataset`` is taken whole);
            - an ``IterableDataset``, read once into memory;
            - a ``DataLoader``: its dataset and its ``collate_fn``. Batch size, order and workers are the
              training's own business; a ``SubsetRandomSampler``'s rows are honoured, other samplers that
              choose rows are refused, because their choice would be lost.

        task: how targets are read.

    Raises:
        DataError: none of these, or rows that do not fit together.

    >>> as_examples(([[0.0, 1.0], [2.0, 3.0]], [0, 1])).targets
    tensor([0, 1])
    """
    if isinstance(data, DataLoader):
        return _from_loader(data, task=task)
    if isinstance(data, IterableDataset):
        return _from_batches(_collated_items(data), task=task, what=type(data).__name__)
    if isinstance(data, TensorDataset):
        return TensorExamples(*split_batch(tuple(data.tensors), task=task))
    if type(data) is Subset:
        return SubsetExamples(
            as_examples(data.dataset, task=task), torch.as_tensor(data.indices, dtype=torch.int64)
        )
    if is_examples(data):
        return with_task(data, task=task)
    if isinstance(data, Mapping):
        return _from_dict(data, task=task)
    if isinstance(data, tuple | list) and len(data) == 2:
        return TensorExamples(as_inputs(data[0]), cast_targets(as_tensor(data[1], "targets"), task))
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, tuple | list | str):
        if isinstance(data, np.ndarray | Tensor):
            raise DataError(f"a lone {type(data).__name__} has no targets; give (X, y)")
        return MapExamples(data, task=task)
    raise DataError(
        f"cannot read labelled rows from {type(data).__name__}; "
        "give (X, y), a Dataset, a DataLoader or a dict with 'labels'"
    )


def is_examples(data: Any) -> bool:
    """Whether ``data`` has the face of `Examples`; its targets, which may cost a read, are not touched.

    >>> is_examples(TensorExamples(torch.zeros(1, 1), torch.zeros(1))), is_examples([1, 2])
    (True, False)
    """
    return all(hasattr(type(data), name) for name in ("fetch", "targets", "__len__"))


def with_task(examples: Examples, *, task: Task) -> Examples:
    """The same rows with targets cast for ``task``; what is not HQDE's own kind is taken as it is."""
    if isinstance(examples, TensorExamples):
        targets = cast_targets(examples.targets, task)
        return examples if targets is examples.targets else TensorExamples(examples.inputs, targets)
    if isinstance(examples, SubsetExamples):
        base = with_task(examples.examples, task=task)
        return examples if base is examples.examples else SubsetExamples(base, examples.index)
    if isinstance(examples, MapExamples):
        return examples.with_task(task)
    return examples


def as_inputs(data: Any) -> Inputs:
    """Unlabelled inputs as tensors: an array or tensor, or a tuple or dict of them.

    Raises:
        DataError: something is not numeric.

    >>> as_inputs([[1.0, 2.0]])
    tensor([[1., 2.]])
    """
    if isinstance(data, Mapping):
        return {str(name): as_tensor(value, str(name)) for name, value in data.items()}
    if isinstance(data, tuple):
        return tuple(as_tensor(value, str(position)) for position, value in enumerate(data))
    return as_tensor(data, "inputs")


def as_tensor(values: Any, name: str) -> Tensor:
    """One tensor of numbers from a tensor, array, data frame column or nested list.

    Raises:
        DataError: the values are not numbers, or rows differ in length.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} do not form one array of numbers: {error}; give rows of equal length"
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} hold {array.dtype}, not numbers; encode them as numbers first")
    if array.dtype == np.float64 and not isinstance(values, np.ndarray):
        array = array.astype(np.float32)  # a list says nothing of its precision
    return torch.from_numpy(np.ascontiguousarray(_native(array)))


def _native(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that torch has: this machine's byte order, no odd widths."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    return array if array.flags.writeable else array.copy()


def _from_dict(data: Mapping[str, Any], *, task: Task) -> Examples:
    key = next((key for key in LABEL_KEYS if key in data), None)
    if key is None:
        raise DataError(f"a dict of rows needs its targets under 'labels' or 'label'; it has {sorted(data)}")
    inputs = as_inputs({name: value for name, value in data.items() if name not in LABEL_KEYS})
    return TensorExamples(inputs, cast_targets(as_tensor(data[key], key), task))


def _from_loader(loader: DataLoader[Any], *, task: Task) -> Examples:
    if isinstance(loader.dataset, IterableDataset):
        return _from_batches(loader, task=task, what="the loader")
    default = loader.collate_fn in (default_collate, default_convert)
    collate: Callable[[list[Any]], Any] | None = None if default else loader.collate_fn
    dataset = loader.dataset
    examples = (
        as_examples(dataset, task=task) if collate is None else MapExamples(dataset, collate, task=task)
    )
    sampler = loader.sampler
    if loader.batch_sampler is not None:
        batches = loader.batch_sampler
        sampler = batches.sampler if type(batches) is BatchSampler else batches
    if isinstance(sampler, SubsetRandomSampler):
        return SubsetExamples(examples, torch.as_tensor(list(sampler.indices), dtype=torch.int64))
    whole = (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(examples)
    )
    if whole or isinstance(sampler, SequentialSampler):
        return examples
    raise DataError(
        f"the loader's {type(sampler).__name__} chooses its own rows, which would be lost because workers "
        "draw their rows themselves; give the rows as a Dataset or torch Subset instead"
    )


def _collated_items(dataset: IterableDataset[Any]) -> Any:
    items: list[Any] = []
    for item in dataset:
        items.append(item)
        if len(items) == _ITEMS_PER_BATCH:
            yield default_collate(items)
            items = []
    if items:
        yield default_collate(items)


def _from_batches(batches: Any, *, task: Task, what: str) -> Examples:
    """Read batches once and keep them all."""
    parts: list[Batch] = [split_batch(batch, task=task) for batch in batches]
    if not parts:
        raise DataError(f"{what} gave no batches; the data set is empty")
    named = [tensors_of(part.inputs) for part in parts]
    try:
        joined = {name: torch.cat([tensors[name] for tensors in named]) for name in named[0]}
    except (RuntimeError, KeyError) as error:
        raise DataError(
            f"{what} gives batches of different form: {error}; pad every batch to one shape"
        ) from error
    first = parts[0].inputs
    inputs: Inputs
    if isinstance(first, Tensor):
        inputs = joined[""]
    else:
        inputs = joined if isinstance(first, Mapping) else tuple(joined.values())
    return TensorExamples(inputs, torch.cat([part.targets for part in parts]))
