"""Every exception that HQDE raises on purpose.

Each class also inherits the builtin that fits, so that code which knows nothing of HQDE can catch it,
and carries its data as attributes. Messages are one sentence with the numbers and the cure.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HqdeError(Exception):
    """The top of HQDE's exceptions."""


class ConfigError(HqdeError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(HqdeError, ValueError):
    """A data source cannot be read, or what it holds cannot be trained on."""


class PreconditionError(HqdeError, ValueError):
    """A call's arguments do not fit each other (shapes, counts, bounds)."""


class ArtefactError(HqdeError, ValueError):
    """A saved ensemble is missing, altered, truncated, or from an unknown version."""


class PacketError(HqdeError, ValueError):
    """A compressed packet is truncated, altered, from a newer version, or not what the reader expects."""


class RunError(HqdeError, ValueError):
    """A run directory holds another run, is incomplete, or was made with other settings."""


class NonFiniteError(HqdeError, ArithmeticError):
    """A number that must be finite is NaN or infinite."""


class CheckpointError(HqdeError, RuntimeError):
    """A checkpoint is missing, altered, or does not fit the run."""


class WorkerError(HqdeError, RuntimeError):
    """A worker could not do its work. Attribute: ``worker_id``."""

    def __init__(self, message: str, *, worker_id: int | None = None) -> None:
        super().__init__(message)
        self.worker_id = worker_id


class QuorumError(HqdeError, RuntimeError):
    """Too few workers handed in a usable update. Attributes: ``present``, ``required``."""

    def __init__(self, message: str, *, present: int, required: int) -> None:
        super().__init__(message)
        self.present = present
        self.required = required


class OutOfMemoryError(HqdeError, MemoryError):
    """What is to be trained at a time needs more memory than there is."""


class MissingExtraError(HqdeError, ImportError):
    """An optional dependency is not installed. Attribute: ``extra``."""

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'hqde[{extra}]'")
        self.extra = extra


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence that names the nearest known word, or lists what is known.

    >>> did_you_mean("ep0chs", ["epochs", "batch_size"])
    "did you mean 'epochs'?"
    >>> did_you_mean("zzz", ["cnn", "mlp"])
    'known: cnn, mlp'
    """
    options = sorted(known)
    near = get_close_matches(name, options, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(options)}"
