"""Training, validation and test rows of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor

from hqde.data.examples import Examples, SubsetExamples, Task, TensorExamples
from hqde.data.readers import read_source
from hqde.data.schema import Schema, check_inputs, check_targets, infer_schema
from hqde.data.source import EncodedExamples
from hqde.errors import ConfigError, DataError
from hqde.seeding import generator


@dataclass(frozen=True)
class Splits:
    """One data set, split: disjoint rows to train on, to choose with, and to report on.

    Args:
        name: short, for reports.
        schema: what a row is; the same for all three.
        train: rows to fit.
        validation: held-out rows for early stopping, calibration and selection.
        test: rows that only the final figures see.
    """

    name: str
    schema: Schema
    train: Examples
    validation: Examples
    test: Examples


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
        max_train: train and validate on this many rows of the training file, the first of a seeded permutation.
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
    if task is not None and task not in get_args(Task):
        raise ConfigError(f"task is {task!r}; use 'classification' or 'regression'")
    found = read_source(source, task=cast("Task | None", task), target=target)
    return make_splits(
        found.name,
        found.train,
        test=found.test,
        task=found.task,
        classes=found.classes,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        max_train=max_train,
    )


def make_splits(
    name: str,
    train: Examples,
    *,
    validation: Examples | None = None,
    test: Examples | None = None,
    task: Task,
    classes: Sequence[str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    max_train: int | None = None,
) -> Splits:
    """Check rows that are at hand and hold out what is missing: test first, then validation.

    Args and errors as in `load_splits`.
    """
    _check_settings(validation_fraction, test_fraction, max_train)
    if len(train) == 0:
        raise DataError(f"{name} is empty: 0 training rows; give at least one row per class")
    stratify = task == "classification"
    names = check_targets(train.targets, task=task, classes=classes)
    if test is None:
        kept, held = hold_out(
            train.targets, test_fraction, seed=split_seed, purpose="test", stratify=stratify
        )
        test, train = _rows(train, held), _rows(train, kept)
    if max_train is not None and max_train < len(train):
        order = torch.randperm(len(train), generator=generator(split_seed, "data", "max_train"))
        train = _rows(train, order[:max_train].sort().values)
    if isinstance(train, EncodedExamples):
        train = _rows(train, torch.arange(len(train)))
    if isinstance(test, EncodedExamples):
        test = _rows(test, torch.arange(len(test)))
    if validation is None:
        kept, held = hold_out(
            train.targets, validation_fraction, seed=split_seed, purpose="validation", stratify=stratify
        )
        validation, train = SubsetExamples(train, held), SubsetExamples(train, kept)
    schema = infer_schema(train, task=task, classes=names or None)
    for label, part in (("validation", validation), ("test", test)):
        _check_against(schema, train, part, name=label)
    return Splits(name=name, schema=schema, train=train, validation=validation, test=test)


def hold_out(
    targets: Tensor, fraction: float, *, seed: int, purpose: str, stratify: bool
) -> tuple[Tensor, Tensor]:
    """Draw round(fraction · n) rows to hold out.

    With ``stratify`` each class gives its share, the largest fractions rounded up, and keeps at least one row.

    Args:
        targets: (n,) class ids or values.
        fraction: in (0, 1).
        seed: the only source of chance.
        purpose: ``"validation"`` or ``"test"``; names the random stream, and the setting in errors.
        stratify: hold out class by class.

    Returns:
        Kept and held-out row numbers, each ascending.

    Raises:
        DataError: the fraction rounds to no row, or leaves none.

    >>> kept, held = hold_out(torch.tensor([0, 1] * 10), 0.2, seed=0, purpose="validation", stratify=True)
    >>> len(kept), len(held), int(torch.tensor([0, 1] * 10)[held].sum())
    (16, 4, 2)
    """
    num_rows = len(targets)
    num_held = int(fraction * num_rows + 0.5)
    if not 0 < num_held < num_rows:
        needed = max(2, int(0.5 / fraction + 0.999), int(0.5 / (1 - fraction)) + 1)
        raise DataError(
            f"too few samples: {purpose}_fraction={fraction} of {num_rows} rows is {num_held} {purpose} rows, which "
            f"leaves {num_rows - num_held}; give at least {needed} rows or another {purpose}_fraction"
        )
    order = torch.randperm(num_rows, generator=generator(seed, "data", purpose))
    if not stratify:
        held = order[:num_held]
        return order[num_held:].sort().values, held.sort().values
    labels, class_of_row, sizes = torch.unique(targets, return_inverse=True, return_counts=True)
    quota = _stratified_quota(sizes, num_held)
    held_rows = []
    for label in range(len(labels)):
        rows = order[class_of_row[order] == label]
        held_rows.append(rows[: int(quota[label])])
    held = torch.cat(held_rows).sort().values
    mask = torch.ones(num_rows, dtype=torch.bool)
    mask[held] = False
    return mask.nonzero().squeeze(1), held


def _stratified_quota(sizes: Tensor, num_held: int) -> Tensor:
    """Rows to hold out of each class: near num_held · size / n, at most size − 1, summing to num_held if it can."""
    most = sizes - 1
    exact = sizes.to(torch.float64) * num_held / int(sizes.sum())
    quota = torch.minimum(exact.floor().to(torch.int64), most)
    while int(quota.sum()) < num_held:
        short = torch.where(quota < most, exact - quota, torch.full_like(exact, -torch.inf))
        if bool(torch.isinf(short).all()):
            break
        quota[int(short.argmax())] += 1
    return quota


def _rows(examples: Examples, index: Tensor) -> Examples:
    if isinstance(examples, EncodedExamples):
        return TensorExamples(*examples.fetch(index))
    return SubsetExamples(examples, index)


def _check_settings(validation_fraction: float, test_fraction: float, max_train: int | None) -> None:
    for name, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0.0 < value < 1.0:
            raise ConfigError(f"{name} must be above 0 and below 1, not {value}")
    if max_train is not None and max_train < 2:
        raise ConfigError(f"max_train must be at least 2, not {max_train}")


def _check_against(schema: Schema, train: Examples, part: Examples, *, name: str) -> None:
    """Refuse a held-out part that does not fit the training rows."""
    if len(part) == 0:
        raise DataError(f"the {name} split is empty: 0 rows; give at least one")
    try:
        shape, _ = check_inputs(part)
        if schema.task == "classification":
            _check_labels(schema, train, part, name=name)
    except DataError as error:
        raise DataError(f"{name} split: {error}") from error
    if shape != schema.input_shape:
        raise DataError(
            f"training rows have shape {schema.input_shape} and {name} rows {shape}; bring both to one shape"
        )


def _check_labels(schema: Schema, train: Examples, part: Examples, *, name: str) -> None:
    unseen = sorted(set(part.targets.unique().tolist()) - set(train.targets.unique().tolist()))
    if unseen:
        raise DataError(
            f"{len(unseen)} of its labels never occur in the {len(train)} training rows ({unseen[:10]}); "
            "add training rows of those classes or remove the rows"
        )
