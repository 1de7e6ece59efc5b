"""Training, validation and test rows of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hqde.data.examples import Examples, SubsetExamples, Task
from hqde.data.holdout import hold_out
from hqde.data.schema import Schema, check_classes_differ, check_inputs, check_targets, describe_inputs
from hqde.data.source import decode_parts, is_encoded
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

    Args:
        name: short, for reports.
        train: the rows to fit, and to hold out from.
        validation: rows set apart for validation already.
        test: rows set apart for testing already.
        task: ``"classification"`` or ``"regression"``.
        classes: class names in the order of the class ids.
        validation_fraction, test_fraction, split_seed, max_train: as in `load_splits`.

    Raises:
        DataError: rows that cannot be trained on, or parts that do not fit each other.
        ConfigError: a fraction or ``max_train`` is out of range.

    >>> from hqde.data.conversion import as_examples
    >>> rows = as_examples((torch.rand(50, 3), torch.arange(50) % 2))
    >>> splits = make_splits("mine", rows, task="classification")
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (36, 4, 10)
    """
    _check_settings(validation_fraction, test_fraction, max_train)
    stratify = task == "classification"
    classes = _check_part("training", train, task=task, classes=classes) or None
    for part_name, part in (("validation", validation), ("test", test)):
        if part is not None:
            _check_part(part_name, part, task=task, classes=classes)
    if test is None:
        kept, held = hold_out(
            train.targets, test_fraction, seed=split_seed, purpose="test", stratify=stratify
        )
        test, train = SubsetExamples(train, held), SubsetExamples(train, kept)
    if max_train is not None and max_train < len(train):
        order = torch.randperm(len(train), generator=generator(split_seed, "data", "max_train"))
        train = SubsetExamples(train, order[:max_train].sort().values)
    if validation is None:
        kept, held = hold_out(
            train.targets, validation_fraction, seed=split_seed, purpose="validation", stratify=stratify
        )
        validation, train = SubsetExamples(train, held), SubsetExamples(train, kept)
    train, validation, test = decode_parts([train, validation, test])
    if stratify:
        check_classes_differ(train.targets)
    kind, shape = describe_inputs(train)
    for part_name, part in (("validation", validation), ("test", test)):
        _check_fits(part_name, part, train=train, shape=shape, classes=classes)
    schema = Schema(task=task, kind=kind, classes=tuple(classes or ()), input_shape=shape)
    return Splits(name=name, schema=schema, train=train, validation=validation, test=test)


def _check_settings(validation_fraction: float, test_fraction: float, max_train: int | None) -> None:
    for name, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0.0 < value < 1.0:
            raise ConfigError(f"{name} must be above 0 and below 1, not {value}")
    if max_train is not None and max_train < 2:
        raise ConfigError(f"max_train must be at least 2 rows, not {max_train}")


def _check_part(name: str, part: Examples, *, task: Task, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Refuse rows that are unusable by themselves, counting rows as the source does; the class names."""
    if len(part) == 0:
        raise DataError(f"the {name} data are empty: 0 rows; give at least one row per class")
    try:
        names = check_targets(part.targets, task=task, classes=classes)
        if task == "classification" and name == "training":
            check_classes_differ(part.targets)
        if not is_encoded(part):  # what is still encoded is uint8 pixels: always finite
            check_inputs(part)
    except DataError as error:
        raise DataError(f"{name} data: {error}") from error
    return names


def _check_fits(
    name: str,
    part: Examples,
    *,
    train: Examples,
    shape: tuple[int, ...] | None,
    classes: Sequence[str] | None,
) -> None:
    """Refuse a held-out part that does not fit the training rows."""
    _, found = describe_inputs(part)
    if found != shape:
        raise DataError(f"training rows have shape {shape} but {name} rows {found}; bring both to one shape")
    if classes is None:
        return
    unseen = sorted(set(part.targets.unique().tolist()) - set(train.targets.unique().tolist()))
    if unseen:
        raise DataError(
            f"{len(unseen)} classes of the {name} data never occur in the {len(train)} training rows "
            f"(first: '{classes[unseen[0]]}'); add training rows of those classes (or raise max_train), "
            f"or remove them from the {name} data"
        )
