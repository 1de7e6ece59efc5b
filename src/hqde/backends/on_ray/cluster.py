"""Joining a cluster, or starting one here; and whether the workers fit on it."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from hqde.backends.on_ray.failures import first_line
from hqde.backends.ray_settings import RaySettings
from hqde.errors import ConfigError

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Seats:
    """What each worker holds of the cluster.

    Attributes:
        num_cpus, num_gpus: reserved for each worker.
        threads: torch threads of each.
        at_a_time: workers that may train at the same time.
        places: workers that there is room for.
    """

    num_cpus: float
    num_gpus: float
    threads: int
    at_a_time: int
    places: int


def join(settings: RaySettings) -> bool:
    """Connect to a cluster, or start a Ray on this machine; a connection of the caller's is used as it is.

    Returns:
        whether this call connected, and ``ray.shutdown`` is ours to call.

    Raises:
        ConfigError: nothing answers at the address.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    if ray.is_initialized():
        return False
    if address is None or address == "local":
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=usable_cpus(),
            logging_level="ERROR",
            log_to_driver=False,
        )
        return True
    if address != "auto":
        _check_reachable(address)
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(f"cannot join a Ray cluster at '{address}': {first_line(error)}") from error
    return True


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alive_nodes() -> list[str]:
    """Ids of the nodes that are up, in a fixed order."""
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])


def node_resources(name: str) -> list[float]:
    """How much of a resource each node that is up has in all."""
    return [float(node["Resources"].get(name, 0.0)) for node in ray.nodes() if node["Alive"]]


def seat(settings: RaySettings, num_workers: int, threads: int) -> Seats:
    """What each worker gets, checked before anything is created.

    Args:
        settings: what was asked for.
        num_workers: workers to place.
        threads: torch threads of each; 0 follows from the CPUs.

    Raises:
        ConfigError: they do not fit; the sentence has the numbers.
    """
    return plan_seats(settings, num_workers, threads, cpus=node_resources("CPU"), gpus=node_resources("GPU"))


def plan_seats(
    settings: RaySettings, num_workers: int, threads: int, *, cpus: Sequence[float], gpus: Sequence[float]
) -> Seats:
    """``seat`` on nodes with so many CPUs and GPUs. Pure.

    Example:
        >>> plan_seats(RaySettings(), 8, 1, cpus=[2.0], gpus=[0.0])
        Seats(num_cpus=0.25, num_gpus=0.0, threads=1, at_a_time=2, places=8)
    """
    total = sum(cpus)
    if settings.min_workers:
        num_cpus = settings.num_cpus or 1.0
    else:
        num_cpus = settings.num_cpus or min(_even_share(num_workers, cpus), float(threads) or math.inf)
    room, needed = num_fitting(num_cpus, cpus), settings.min_workers or num_workers
    if room < needed:
        raise ConfigError(
            f"{needed} workers of {num_cpus:g} CPUs each do not fit on {len(cpus)} node(s) with {total:g} "
            f"CPUs: {room} would; use ray.num_cpus={_even_share(needed, cpus):g}"
            + (f" or run.workers={room}" if room else "")
        )
    gpu_room = num_fitting(settings.num_gpus, gpus) if settings.num_gpus else num_workers
    if gpu_room < needed:
        cure = (
            f"use run.workers={gpu_room}, or a smaller ray.num_gpus" if gpu_room else "set ray.num_gpus = 0"
        )
        raise ConfigError(
            f"{needed} workers of {settings.num_gpus:g} GPUs each do not fit on {sum(gpus):g} GPUs: "
            f"{gpu_room} would; {cure}"
        )
    threads = threads or max(1, int(num_cpus))
    places = min(num_workers, room, gpu_room)
    at_a_time = max(1, min(places, int(total // threads)))
    return Seats(num_cpus, settings.num_gpus, threads, at_a_time, places)


def num_fitting(each: float, nodes: Sequence[float]) -> int:
    """Workers of ``each`` CPUs or GPUs that fit on nodes without being split over two."""
    return sum(int(node / each + 1e-6) for node in nodes)


def _even_share(num_workers: int, nodes: Sequence[float]) -> float:
    """The largest equal share with which all workers fit; whole CPUs from 1 on."""
    for each in sorted({node / k for node in nodes for k in range(1, num_workers + 1) if node}, reverse=True):
        share = float(int(each)) if each >= 1 else math.floor(each * 1e4) / 1e4
        if num_fitting(share, nodes) >= num_workers:
            return share
    return math.floor(min(nodes, default=1.0) / num_workers * 1e4) / 1e4


def _check_reachable(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"'{address}' is no address of a Ray cluster; use host:port, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"nothing answers at '{address}' ({error}); start a cluster with `ray start --head`, or leave "
            f"ray.address out"
        ) from error
