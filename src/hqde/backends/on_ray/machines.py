"""What the other machines of a cluster are doing: an actor on each looks, the driver never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hqde.monitoring import Probes, SystemMetrics


@dataclass
class Post:
    """The actor on one machine: its name for people, its handle, and the look under way."""

    name: str
    actor: Any
    look: Any


class Machines:
    """An actor on every machine but the driver's, each asked anew as soon as it has answered.

    Machines that join are watched from the next call on; those that leave are forgotten. May be used from
    several threads.
    """

    def __init__(self) -> None:
        self._here = ray.get_runtime_context().get_node_id()
        self._posts: dict[str, Post] = {}
        self._lock = threading.Lock()
        self._is_open = True

    def look(self) -> Mapping[str, SystemMetrics]:
        """What was answered since the last call, by machine; without waiting."""
        with self._lock:
            if not self._is_open:
                return {}
            self._man()
            found = {}
            for node, post in list(self._posts.items()):
                if not ray.wait([post.look], timeout=0)[0]:
                    continue
                try:
                    found[post.name] = ray.get(post.look)
                except RayError:  # its machine or its process went
                    del self._posts[node]
                else:
                    post.look = post.actor.sample.remote()
            return found

    def close(self) -> None:
        """Let go of the actors."""
        with self._lock:
            self._is_open = False
            for post in self._posts.values():
                ray.kill(post.actor)
            self._posts = {}

    def _man(self) -> None:
        """An actor on each machine that is up, none on others."""
        up = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        self._posts = {node: post for node, post in self._posts.items() if node in up}
        for node, host in up.items():
            if node != self._here and node not in self._posts:
                where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
                # Ray's workers on a machine are children of its raylet, as this actor is.
                actor = (
                    ray.remote(Probes).options(num_cpus=0, scheduling_strategy=where).remote(siblings=True)
                )
                self._posts[node] = Post(f"{host}-{node[:6]}", actor, actor.sample.remote())
