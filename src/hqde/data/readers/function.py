"""``module:function``: rows that the user's own code makes."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from pathlib import Path
from typing import Any

import torch

from hqde.data.conversion import as_examples, as_inputs, with_task
from hqde.data.examples import LABEL_KEYS, Examples, Inputs, Task
from hqde.data.source import Source
from hqde.data.splits import Splits
from hqde.errors import DataError, HqdeError, did_you_mean

PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""What ``module:function`` looks like."""


def read_function(source: str, *, task: Task | None = None) -> Source:
    """Call ``function`` of ``module``, which may lie in the current folder, without arguments.

    It returns `Splits`; ``(X, y)``; ``(train, test)`` or ``(train, validation, test)``; or rows in any
    form that `as_examples` takes. Floats that are not all whole make it regression, unless ``task`` says
    otherwise.

    Raises:
        DataError: no such module or function, it fails, or it returns something else.
    """
    return _labelled(_call(source), source, task=task)


def read_function_inputs(source: str, *, task: Task) -> Inputs:
    """What the function returns as inputs, labelled (the last part then) or not."""
    made = _call(source)
    if isinstance(made, torch.Tensor) or hasattr(made, "__array__"):
        return as_inputs(made)
    if isinstance(made, Mapping) and not any(key in made for key in LABEL_KEYS):
        return as_inputs(made)
    found = _labelled(made, source, task=task)
    return found.test_or_all.fetch(torch.arange(len(found.test_or_all))).inputs


def _labelled(made: Any, source: str, *, task: Task | None) -> Source:
    if isinstance(made, Splits):
        if task not in (None, made.schema.task):
            raise DataError(
                f"{source} returns Splits for {made.schema.task}, but task='{task}'; leave task out"
            )
        return Source(
            name=made.name,
            task=made.schema.task,
            train=made.train,
            validation=made.validation,
            test=made.test,
            classes=made.schema.classes or None,
        )
    try:
        parts = [as_examples(part, task="regression") for part in _parts(made)]
    except HqdeError as error:
        raise DataError(f"{source} returns rows that cannot be used: {error}") from error
    found = task or ("classification" if all(_whole(part) for part in parts) else "regression")
    train, *others = [with_task(part, task=found) for part in parts]
    return Source(
        name=source,
        task=found,
        train=train,
        validation=others[0] if len(others) == 2 else None,
        test=others[-1] if others else None,
    )


def _call(source: str) -> Any:
    module_name, _, function_name = source.partition(":")
    with _current_folder_importable():
        function = _find(source, module_name, function_name)
        try:
            return function()
        except HqdeError:
            raise
        except Exception as error:  # the user's code can fail in any way
            raise DataError(
                f"{source} failed with {type(error).__name__}: {error}; call it by itself to see where"
            ) from error


def _find(source: str, module_name: str, function_name: str) -> Callable[[], Any]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise DataError(
                f"no module '{module_name}' for data '{source}'; write it in {Path.cwd()} or install it"
            ) from error
        raise DataError(
            f"module '{module_name}' needs '{error.name}', which is not installed; install it"
        ) from error
    except Exception as error:  # importing runs the user's code
        raise DataError(
            f"module '{module_name}' fails on import with {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise DataError(
            f"module '{module_name}' has no function '{function_name}'; {did_you_mean(function_name, known)}"
        )
    if not callable(function):
        raise DataError(
            f"{source} is a {type(function).__name__}, not a function; name a function without arguments"
        )
    return function


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Put the current folder first on the module path while the user's code is found and run."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _parts(made: Any) -> list[Any]:
    """What the function returned as training (, validation) and test rows."""
    if isinstance(made, tuple | list) and len(made) in (2, 3) and not _is_targets(made[-1]):
        return list(made)
    return [made]


def _is_targets(value: Any) -> bool:
    """Whether the second of a pair is the y of (X, y) rather than test rows."""
    if isinstance(value, tuple | list):
        return not value or isinstance(value[0], Number)
    return isinstance(value, torch.Tensor) or hasattr(value, "__array__")


def _whole(examples: Examples) -> bool:
    targets = examples.targets
    finite = targets[torch.isfinite(targets)]
    return bool((finite == finite.round()).all())
