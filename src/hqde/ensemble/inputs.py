"""From whatever holds rows to batches of raw inputs, checked against what the members were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from hqde.data import Batch, Examples, Inputs, Schema, as_inputs, num_rows
from hqde.data.examples import LABEL_KEYS, tensors_of
from hqde.errors import DataError, NonFiniteError, PreconditionError
from hqde.seeding import seeded


def input_batches(data: Any, *, batch_size: int) -> Iterator[Inputs]:
    """Raw inputs in batches, rows in the data's order; targets, where there are any, are left out.

    Args:
        data: a tensor, array, list of rows, data frame; a tuple or dict of them (several inputs per row);
            any ``Examples``; a ``Dataset`` or ``DataLoader`` whose items are inputs alone, ``(x,)``,
            ``(x, y)``, ``(x1, x2, y)`` or dicts. A loader that shuffles is read in its dataset's order, with
            its ``collate_fn``; one with a sampler of its own is read in the order of that sampler.
        batch_size: rows at once, at least 1.

    Raises:
        PreconditionError: batch_size is below 1.
        DataError: the data are none of these, or hold no numbers.

    >>> [batch.shape for batch in input_batches(torch.zeros(5, 3), batch_size=2)]
    [torch.Size([2, 3]), torch.Size([2, 3]), torch.Size([1, 3])]
    """
    if batch_size < 1:
        raise PreconditionError(f"batch_size is at least 1, got {batch_size}.")
    if isinstance(data, DataLoader):
        yield from _loader_batches(data, batch_size)
    elif isinstance(data, IterableDataset):
        yield from map(without_targets, DataLoader(data, batch_size=batch_size))
    elif isinstance(data, TensorDataset):
        yield from _slices(without_targets(tuple(data.tensors)), batch_size)
    elif callable(getattr(data, "fetch", None)):  # isinstance(…, Examples) would read all targets first
        yield from (batch.inputs for batch in labelled_batches(data, batch_size=batch_size))
    elif isinstance(data, Dataset) or _is_map_style(data):
        yield from _dataset_batches(data, default_collate, range(len(data)), batch_size)
    else:
        yield from _slices(_whole_inputs(data), batch_size)


def labelled_batches(examples: Examples, *, batch_size: int) -> Iterator[Batch]:
    """Inputs and targets of all rows, in order.

    Raises:
        PreconditionError: batch_size is below 1.
    """
    if batch_size < 1:
        raise PreconditionError(f"batch_size is at least 1, got {batch_size}.")
    for start in range(0, len(examples), batch_size):
        with seeded(0, "ensemble", "read", start):  # random transforms must not move the caller's streams
            batch = examples.fetch(torch.arange(start, min(start + batch_size, len(examples))))
        yield batch


def without_targets(batch: Any) -> Inputs:
    """The inputs of one collated batch: all but the last of several, or a dict without its labels.

    Raises:
        DataError: the batch holds something that is no tensor.

    >>> without_targets((torch.tensor([1]), torch.tensor([2]), torch.tensor([0])))
    (tensor([1]), tensor([2]))
    """
    if isinstance(batch, Batch):
        return batch.inputs
    if isinstance(batch, tuple | list):
        inputs = tuple(batch[:-1]) if len(batch) > 1 else tuple(batch)
        return as_inputs(inputs[0] if len(inputs) == 1 else inputs)
    if isinstance(batch, Mapping):
        return as_inputs({name: value for name, value in batch.items() if name not in LABEL_KEYS})
    return as_inputs(batch)


def check_inputs(inputs: Inputs, schema: Schema) -> None:
    """Refuse inputs of another form or shape than the members were trained on.

    Raises:
        PreconditionError: with the shape found and the shape expected.
    """
    expected = schema.input_shape
    if expected is None:
        if isinstance(inputs, Tensor):
            raise PreconditionError(
                f"inputs are one tensor {tuple(inputs.shape)}, and the members were trained on a dict or "
                "tuple of tensors: give the same."
            )
        num_rows(inputs)
        return
    wanted = f"(n, {', '.join(map(str, expected))})"
    if not isinstance(inputs, Tensor):
        kind = type(inputs).__name__
        raise PreconditionError(
            f"inputs are a {kind}, and the members were trained on one tensor {wanted}: give that."
        )
    if inputs.ndim == 0 or tuple(inputs.shape[1:]) != expected:
        single = tuple(inputs.shape) == expected
        cure = "put a single example into a row of its own, x[None]" if single else "bring rows to that shape"
        raise PreconditionError(f"inputs have shape {tuple(inputs.shape)}, expected {wanted}: {cure}.")


def check_targets(targets: Tensor, schema: Schema) -> None:
    """Refuse labels that are none of the classes.

    Raises:
        DataError: with the range found and the range expected.
    """
    if schema.task == "classification" and len(targets):
        low, high, most = int(targets.min()), int(targets.max()), schema.num_classes - 1
        if low < 0 or high > most:
            raise DataError(f"labels lie in {low}..{high}, and the classes are 0..{most}: correct them.")


def check_finite(inputs: Inputs, *, first_row: int) -> None:
    """Refuse NaN and infinity in float inputs; ``first_row`` is the batch's place in the data.

    Raises:
        NonFiniteError: with the number of rows and the first of them.
    """
    for name, tensor in tensors_of(inputs).items():
        if tensor.is_floating_point() and len(tensor):
            bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(dim=1)
            if bool(bad.any()):
                row = first_row + int(bad.nonzero()[0])
                where = f" of input {name!r}" if name else ""
                raise NonFiniteError(
                    f"{int(bad.sum())} rows{where} hold NaN, infinity or numbers too large (first: {row}): "
                    "remove or fill them."
                )


def _whole_inputs(data: Any) -> Inputs:
    if isinstance(data, list) and data and all(isinstance(row, Tensor) for row in data):
        if len({row.shape for row in data}) > 1:
            raise DataError("the rows of the list differ in shape: bring them to one shape.")
        return torch.stack(data)
    return as_inputs(data)


def _slices(inputs: Inputs, batch_size: int) -> Iterator[Inputs]:
    if any(tensor.ndim == 0 for tensor in tensors_of(inputs).values()):
        yield inputs  # for check_inputs to refuse
        return
    for start in range(0, max(1, num_rows(inputs)), batch_size):  # no rows: one empty batch, still checked
        rows = slice(start, start + batch_size)
        if isinstance(inputs, Tensor):
            yield inputs[rows]
        elif isinstance(inputs, Mapping):
            yield {name: tensor[rows] for name, tensor in inputs.items()}
        else:
            yield tuple(tensor[rows] for tensor in inputs)


def _is_map_style(data: Any) -> bool:
    return (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not hasattr(data, "__array__")
        and not isinstance(data, list | tuple | Mapping | str | bytes)
    )


def _loader_batches(loader: DataLoader[Any], batch_size: int) -> Iterator[Inputs]:
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        outer = loader.batch_sampler
        sampler = outer.sampler if type(outer) is BatchSampler else outer
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        yield from map(without_targets, loader)
        return
    everything = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(dataset)
    )
    if not everything and not isinstance(sampler, SubsetRandomSampler):
        yield from map(without_targets, loader)
        return
    default = loader.collate_fn in (default_collate, default_convert)  # default_convert: batch_size=None
    if everything and default:
        yield from input_batches(dataset, batch_size=batch_size)
        return
    rows = range(len(dataset)) if everything else [int(row) for row in sampler.indices]
    yield from _dataset_batches(dataset, default_collate if default else loader.collate_fn, rows, batch_size)


def _dataset_batches(dataset: Any, collate: Any, rows: Any, batch_size: int) -> Iterator[Inputs]:
    for start in range(0, len(rows), batch_size):
        chosen = list(rows[start : start + batch_size])
        with seeded(0, "ensemble", "read", start):
            many = getattr(dataset, "__getitems__", None)
            items = list(many(chosen)) if many else [dataset[row] for row in chosen]
            batch = collate(items)
        yield without_targets(batch)
