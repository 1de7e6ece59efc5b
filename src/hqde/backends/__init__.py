"""Where workers live: the protocol, and the backends that keep it."""

from hqde.backends.base import Backend, Failure, Outcome, StepReport, Supervisor
from hqde.backends.cores import Seating, seat_workers, torch_threads, usable_cores
from hqde.backends.local import LocalBackend
from hqde.backends.ray_settings import RaySettings
from hqde.backends.vectorised import VectorisedBackend
from hqde.backends.wrapping import WrappedBackend
from hqde.balance import Balancer, RoundRobin
from hqde.errors import ConfigError, did_you_mean

BACKENDS = ("local", "vectorised", "ray")


def make_backend(
    name: str,
    *,
    ray: RaySettings | None = None,
    lanes: int = 0,
    threads: int = 0,
    stacked: int = 0,
    balancer: Balancer = RoundRobin(),
) -> Backend:
    """A backend by name.

    Args:
        name: ``local``, ``vectorised`` or ``ray``.
        ray: settings of the latter.
        lanes: workers, or stacks of them, side by side in this process; 0 follows from the cores.
        threads: torch threads of each worker; 0 follows from its share of the cores.
        stacked: workers in a stack of ``vectorised`` at most; 0 takes as many as memory allows.
        balancer: who predicts which rows, on Ray.

    Raises:
        ConfigError: no such backend.
        MissingExtraError: Ray is not installed.

    Example:
        >>> make_backend("local").name
        'local'
    """
    if name == "local":
        return LocalBackend(lanes=lanes, threads=threads)
    if name == "vectorised":
        return VectorisedBackend(lanes=lanes, threads=threads, stacked=stacked)
    if name == "ray":
        from hqde.backends.on_ray import RayBackend  # imported by those who ask for it alone

        return RayBackend(ray, threads=threads, balancer=balancer)
    if name == "auto":
        raise ConfigError(
            "backend 'auto' is chosen by hqde train alone; ask hqde plan, and name what it says"
        )
    raise ConfigError(f"unknown backend '{name}'; {did_you_mean(name, BACKENDS)}")


__all__ = [
    "BACKENDS",
    "Backend",
    "Failure",
    "LocalBackend",
    "Outcome",
    "RaySettings",
    "Seating",
    "StepReport",
    "Supervisor",
    "VectorisedBackend",
    "WrappedBackend",
    "make_backend",
    "seat_workers",
    "torch_threads",
    "usable_cores",
]
