"""Typed access to JSON that another program wrote: what is wrong is said with the file and the key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hqde.errors import RunError


@dataclass(frozen=True)
class Document:
    """One JSON object and where it stands.

    A figure that is absent or ``null`` reads as ``None``; one of the wrong type is refused.

    Args:
        where: what to call it in an error, e.g. ``history.jsonl line 3``.
        data: the decoded object.

    >>> metrics = Document("metrics.json", {"train": {"wall_s": 2.5}, "nll": float("nan")})
    >>> metrics.number("train", "wall_s"), metrics.number("nll"), metrics.number("ece")
    (2.5, None, None)
    """

    where: str
    data: dict[str, Any]

    def value(self, *keys: str) -> Any:
        """What stands under a path of keys, or ``None``."""
        found: Any = self.data
        for key in keys:
            if not isinstance(found, dict):
                return None
            found = found.get(key)
        return found

    def number(self, *keys: str) -> float | None:
        """A finite number; ``None`` where there is none, or where it is NaN or infinite."""
        return self._number(self.value(*keys), keys)

    def count(self, *keys: str) -> int:
        """A whole number that has to be there.

        Raises:
            RunError: it is missing or not a whole number.
        """
        found = self.value(*keys)
        if isinstance(found, bool) or not isinstance(found, int):
            raise self._refusal(keys, "a whole number", found)
        return found

    def text(self, *keys: str) -> str:
        """A string, or the empty one."""
        found = self.value(*keys)
        if found is None:
            return ""
        if isinstance(found, str | int | float):
            return str(found)
        raise self._refusal(keys, "a text", found)

    def numbers(self, *keys: str) -> list[float | None]:
        """A list of numbers, empty where there is none."""
        return [self._number(item, keys) for item in self.items(*keys)]

    def matrix(self, *keys: str) -> list[list[float | None]]:
        """A list of rows of numbers, empty where there is none."""
        rows = self.items(*keys)
        if any(not isinstance(row, list) or len(row) != len(rows) for row in rows):
            raise self._refusal(keys, "a square matrix", rows)
        return [[self._number(item, keys) for item in row] for row in rows]

    def items(self, *keys: str) -> list[Any]:
        """A list, empty where there is none."""
        found = self.value(*keys)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self._refusal(keys, "a list", found)
        return found

    def documents(self, *keys: str) -> list[Document]:
        """A list of objects, empty where there is none."""
        name = ".".join(keys)
        found = self.items(*keys)
        for item in found:
            if not isinstance(item, dict):
                raise self._refusal(keys, "a list of objects", item)
        return [Document(f"{self.where}, {name}[{i}]", item) for i, item in enumerate(found)]

    def document(self, *keys: str) -> Document | None:
        """The object under a path of keys, or ``None``."""
        found = self.value(*keys)
        if found is None:
            return None
        if not isinstance(found, dict):
            raise self._refusal(keys, "an object", found)
        return Document(f"{self.where}, {'.'.join(keys)}", found)

    def _number(self, found: Any, keys: tuple[str, ...]) -> float | None:
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self._refusal(keys, "a number", found)
        return float(found) if math.isfinite(found) else None

    def _refusal(self, keys: tuple[str, ...], expected: str, found: Any) -> RunError:
        shown = repr(found)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return RunError(f"{self.where}: {'.'.join(keys)} must be {expected}, got {shown}.")
