"""From the name of a data set to its splits."""

from __future__ import annotations

from typing import cast, get_args

from hqde.data.examples import Task
from hqde.data.readers import read_source
from hqde.data.splits import Splits, make_splits
from hqde.errors import ConfigError


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
