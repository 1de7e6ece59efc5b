"""Where workers live: the protocol, and the backends that keep it."""

from hqde.backends.base import Backend, Failure, Outcome, StepReport
from hqde.backends.local import LocalBackend
from hqde.errors import ConfigError, did_you_mean

BACKENDS = ("local",)


def make_backend(name: str) -> Backend:
    """A backend by name.

    Raises:
        ConfigError: no such backend.

    Example:
        >>> make_backend("local").name
        'local'
    """
    if name == "local":
        return LocalBackend()
    raise ConfigError(f"unknown backend '{name}'; {did_you_mean(name, BACKENDS)}")


__all__ = ["BACKENDS", "Backend", "Failure", "LocalBackend", "Outcome", "StepReport", "make_backend"]
