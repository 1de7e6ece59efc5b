"""From what a caller has at hand to checked splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from hqde.data import Splits, SubsetExamples, Task, as_examples, hold_out, make_splits
from hqde.errors import ConfigError
from hqde.training import Recipe


def splits_from(
    train_data: Any,
    validation_data: Any = None,
    test_data: Any = None,
    *,
    task: Task,
    classes: Sequence[str] | None = None,
    validation_fraction: float = 0.1,
    split_seed: int = 0,
) -> Splits:
    """Splits of labelled rows in memory, checked before anything is trained.

    Args:
        train_data, validation_data, test_data: anything that ``as_examples`` takes. Without validation data
            some of the training rows are held out; without test data the validation rows stand in for them.
            ``Splits`` as training data bring the other two along.
        task: how targets are read.
        classes: names by class id.
        validation_fraction: of the training rows, held out class by class, if there are no validation data.
        split_seed: of that draw.

    Raises:
        DataError: rows that cannot be trained on, or that do not fit each other.
        ConfigError: ``Splits`` of another task, or together with further rows.

    Example:
        >>> import torch
        >>> splits = splits_from((torch.rand(50, 3), torch.arange(50) % 2), task="classification")
        >>> len(splits.train), len(splits.validation), splits.test is splits.validation
        (45, 5, True)
    """
    if isinstance(train_data, Splits):
        if validation_data is not None or test_data is not None:
            raise ConfigError(
                "Splits hold their own validation and test rows; give no others, or give splits.train"
            )
        if train_data.schema.task != task:
            raise ConfigError(
                f"'{train_data.name}' is for {train_data.schema.task}, and the system for {task}; "
                f"make the system with task='{train_data.schema.task}'"
            )
        return train_data if len(train_data.test) else replace(train_data, test=train_data.validation)
    train = as_examples(train_data, task=task)
    if validation_data is not None:
        validation = as_examples(validation_data, task=task)
    else:
        kept, held = hold_out(
            train.targets,
            validation_fraction,
            seed=split_seed,
            purpose="validation",
            stratify=task == "classification",
        )
        train, validation = SubsetExamples(train, kept), SubsetExamples(train, held)
    test = validation if test_data is None else as_examples(test_data, task=task)
    name = type(train_data.dataset if isinstance(train_data, DataLoader) else train_data).__name__
    return make_splits(name, train, validation=validation, test=test, task=task, classes=classes)


def recipe_for(train_data: Any, recipe: Recipe | None) -> Recipe:
    """The recipe given, or the default one with the batch size of a ``DataLoader``.

    Example:
        >>> recipe_for(DataLoader([1, 2, 3], batch_size=2), None).batch_size
        2
    """
    if recipe is not None:
        return recipe
    if isinstance(train_data, DataLoader):
        size = train_data.batch_size or getattr(train_data.batch_sampler, "batch_size", None)
        if size is not None:
            return Recipe(batch_size=size)
    return Recipe()
