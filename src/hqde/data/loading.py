"""From the name of a data set to its splits, or to rows for a model that is trained already."""

from __future__ import annotations

from typing import cast, get_args

import torch
from torch import Tensor

from hqde.data.examples import Examples, Inputs, Task, TensorExamples, num_rows
from hqde.data.readers import read_inputs, read_source
from hqde.data.schema import Schema, check_inputs, check_targets, describe_inputs
from hqde.data.source import Source, decode_parts
from hqde.data.splits import Splits, make_splits
from hqde.errors import ConfigError, DataError
from hqde.memory import share_heaps


def load_splits(
    source: str,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    max_train: int | None = None,
    task: str | None = None,
    target: str | None = None,
) -> Splits:
    """Read a data set and split it; the same arguments always give the same rows.

    Args:
        source: what to read; the grammar stands in `hqde.data`.
        validation_fraction: share of the training rows held out, in (0, 1), class by class.
        test_fraction: share of all rows kept for testing, in (0, 1); used only where the source has no test
            split of its own.
        split_seed: the only thing the drawn rows depend on.
        max_train: train and validate on this many rows of the training file, the first of a seeded
            permutation.
        task: ``"classification"`` or ``"regression"``; inferred from the targets if None.
        target: the target column of a table.

    Raises:
        DataError: the source is unknown, missing, damaged, or holds what cannot be trained on.
        ConfigError: a fraction, ``max_train`` or ``task`` is out of range.
        MissingExtraError: the source needs the extra ``data``.

    >>> splits = load_splits("digits")
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1294, 144, 359)
    """
    share_heaps()  # readers have threads
    if task is not None and task not in get_args(Task):
        raise ConfigError(f"task is {task!r}; use 'classification' or 'regression'")
    found = read_source(source, task=cast("Task | None", task), target=target)
    return make_splits(
        found.name,
        found.train,
        validation=found.validation,
        test=found.test,
        task=found.task,
        classes=found.classes,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        max_train=max_train,
    )


def load_rows(source: str, *, schema: Schema, target: str | None = None) -> Examples:
    """Labelled rows to judge a trained model on.

    The source's own test part, or all its rows if it has none; of ``digits`` the test rows of
    `load_splits`. Class names are matched with the schema's, so a file may hold only some of the classes.

    Args:
        source: what to read, as in `load_splits`.
        schema: what the model was trained on.
        target: the target column of a table.

    Raises:
        DataError: the source cannot be read, or its rows do not fit the schema.

    >>> len(load_rows("digits", schema=load_splits("digits").schema))
    359
    """
    if source == "digits" and schema.task == "classification" and target is None:
        digits = load_splits(source)
        found = Source(digits.name, "classification", digits.test, classes=digits.schema.classes)
    else:
        found = read_source(source, task=schema.task, target=target)
    rows = found.test_or_all
    if len(rows) == 0:
        raise DataError(f"{source} is empty: 0 rows; give at least one")
    targets = rows.targets
    if found.classes is not None and found.classes != schema.classes:
        targets = _match_classes(targets, found.classes, schema, source=source)
        rows = TensorExamples(rows.fetch(torch.arange(len(rows))).inputs, targets)
    (rows,) = decode_parts([rows])
    try:
        check_targets(targets, task=schema.task, classes=schema.classes or None)
        check_inputs(rows)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    inputs = rows.inputs if isinstance(rows, TensorExamples) else None
    if isinstance(inputs, Tensor) and _lacks_colour(inputs, schema):
        rows = TensorExamples(inputs.expand(-1, 3, -1, -1), targets)
    _check_shape(rows, schema, source=source)
    return rows


def load_inputs(source: str, *, schema: Schema, target: str | None = None) -> Inputs:
    """Rows to predict, labelled or not, in the order of the source.

    Which rows, as in `load_rows`. A table may come with its target column, which is left out, or without.

    Args:
        source: what to read, as in `load_splits`; a folder may also hold images without class folders.
        schema: what the model was trained on.
        target: a column of a table to leave out.

    Raises:
        DataError: the source cannot be read, or its rows do not fit the schema.

    >>> load_inputs("digits", schema=load_splits("digits").schema).shape
    torch.Size([359, 1, 8, 8])
    """
    if source == "digits" and target is None:
        test = load_splits(source).test
        inputs = test.fetch(torch.arange(len(test))).inputs
    else:
        tabular = schema.kind == "tabular" and schema.input_shape is not None
        num_features = schema.input_shape[0] if tabular and schema.input_shape else None
        inputs = read_inputs(source, task=schema.task, num_features=num_features, target=target)
    if num_rows(inputs) == 0:
        raise DataError(f"{source} is empty: 0 rows; give at least one")
    if isinstance(inputs, Tensor) and _lacks_colour(inputs, schema):
        inputs = inputs.expand(-1, 3, -1, -1)
    rows = TensorExamples(inputs, torch.zeros(num_rows(inputs)))
    try:
        check_inputs(rows)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    _check_shape(rows, schema, source=source)
    return inputs


def _match_classes(targets: Tensor, names: tuple[str, ...], schema: Schema, *, source: str) -> Tensor:
    """Class ids in the file's numbering to those in the schema's, by name."""
    place = {name: label for label, name in enumerate(schema.classes)}
    occurring = [names[label] for label in targets.unique().tolist()]
    unknown = [name for name in occurring if name not in place]
    if unknown:
        raise DataError(
            f"{source} has {len(unknown)} classes that the model does not know, first '{unknown[0]}'; "
            f"it knows {', '.join(schema.classes[:10])}{', …' if len(schema.classes) > 10 else ''}"
        )
    return torch.tensor([place.get(name, -1) for name in names])[targets]


def _lacks_colour(inputs: Tensor, schema: Schema) -> bool:
    """Whether these are grey images of bytes for a model of coloured ones."""
    if inputs.ndim != 4 or inputs.dtype != torch.uint8 or schema.input_shape is None:
        return False
    return (inputs.shape[1], *schema.input_shape[:1]) == (1, 3)


def _check_shape(rows: Examples, schema: Schema, *, source: str) -> None:
    _, shape = describe_inputs(rows)
    if shape != schema.input_shape:
        raise DataError(
            f"{source}: rows have shape {shape}, but the model was trained on {schema.input_shape}; "
            "bring them to that shape"
        )
