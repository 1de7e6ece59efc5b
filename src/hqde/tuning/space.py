"""What is searched: settings, each with a range or a list of choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hqde.config import build_config, merge_trees, parse_assignment
from hqde.errors import ConfigError

Value = str | int | float | bool


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched.

    Args:
        name: ``section.setting``, as ``--set`` takes it.
        low, high: the ends of a range, both included; whole numbers search whole numbers.
        log: evenly in the logarithm.
        choices: in place of a range.

    Raises:
        ConfigError: neither a range nor choices, ends that do not fit, a logarithm from 0 down.

    Example:
        >>> rate = Dimension("training.learning_rate", 1e-4, 1e-2, log=True)
        >>> round(rate.at(0.5), 6), rate.place(1e-4)
        (0.001, 0.0)
        >>> Dimension("training.optimizer", choices=("adamw", "sgd")).at(0.7)
        'sgd'
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            if len(self.choices) < 2 or len(set(map(repr, self.choices))) < len(self.choices):
                raise ConfigError(
                    f"choices for {self.name} must be at least two different ones, got {list(self.choices)}"
                )
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(
                f"the range of {self.name} must go up from one finite number to another, got {self.low} to "
                f"{self.high}"
            )
        if self.log and self.low <= 0:
            raise ConfigError(
                f"a logarithmic range of {self.name} begins above 0, got {self.low}; begin higher, or "
                "leave log: out"
            )

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, place: float) -> Value:
        """The value at a place in [0, 1]."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
        else:
            value = low + place * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def place(self, value: Value) -> float:
        """The place of a value in [0, 1]: the middle of what ``at`` maps to it."""
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            return (math.log(float(value)) - math.log(low)) / (math.log(high) - math.log(low))
        return (float(value) - low) / (high - low)


def parse_search(text: str) -> Dimension:
    """``A.B=LOW:HIGH``, ``A.B=log:LOW:HIGH`` or ``A.B=[x, y, …]``.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> parse_search("training.batch_size=log:16:256")
        Dimension(name='training.batch_size', low=16, high=256, log=True, choices=())
        >>> parse_search("training.optimizer=['adamw', 'sgd']").choices
        ('adamw', 'sgd')
    """
    name, _, _ = text.partition("=")
    tree: Any = parse_assignment(text)
    for part in name.strip().split("."):
        tree = tree[part]
    return _dimension(name.strip(), tree)


def parse_space(
    given: Sequence[str], table: Mapping[str, Any] = {}, *, base: Mapping[str, Any] = {}
) -> tuple[Dimension, ...]:
    """The dimensions of ``--search`` options and of a configuration's ``[search]``, whose names are quoted.

    Args:
        given: as ``--search`` takes them.
        table: ranges and choices by full name.
        base: settings that all trials share, as a tree: a range must fit them, not the defaults.

    Raises:
        ConfigError: one is searched twice, none is, there is no such setting, or an end of its range does
            not fit.
    """
    found = [_dimension(name, value) for name, value in table.items()] + [
        parse_search(text) for text in given
    ]
    if not found:
        raise ConfigError(
            "there is nothing to search; name settings with --search, such as "
            "--search training.learning_rate=log:1e-4:1e-1"
        )
    for dimension in found:
        if [other.name for other in found].count(dimension.name) > 1:
            raise ConfigError(f"{dimension.name} is searched twice; leave one out")
        for place in (0.0, 1.0):
            # Is there such a setting, and does it go with the others?
            build_config(merge_trees(base, tree_of({dimension.name: dimension.at(place)})))
    return tuple(found)


def tree_of(values: Mapping[str, Value]) -> dict[str, Any]:
    """Settings by their full names as a tree.

    >>> tree_of({"run.epochs": 3, "run.seed": 1})
    {'run': {'epochs': 3, 'seed': 1}}
    """
    trees = []
    for name, value in values.items():
        tree: Any = value
        for part in reversed(name.split(".")):
            tree = {part: tree}
        trees.append(tree)
    return merge_trees(*trees)


def _dimension(name: str, value: Any) -> Dimension:
    if isinstance(value, list):
        return Dimension(name, choices=tuple(value))
    parts = str(value).split(":")
    log = parts[0] == "log"
    numbers = parts[1:] if log else parts
    try:
        low, high = (_number(part) for part in numbers)
    except ValueError:
        raise ConfigError(
            f"{name}={value} is no range; write LOW:HIGH, log:LOW:HIGH, or a list of choices in brackets"
        ) from None
    return Dimension(name, low, high, log=log)


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
