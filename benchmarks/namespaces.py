"""Hosts that are network namespaces of this machine, and a Ray cluster across them. Linux, root, iproute2.

Used by ``wan.py``. All that is made is named after a tag, and taken down by ``Network.close``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hqde.errors import WorkerError

SUBNET = "10.77.0"
PORT = 46379  # of the cluster's head
LINK = "eth0"  # the name of every host's one interface
START_S = 120.0  # for a node to come up
KILL_S = 5.0  # from asking a process to end to making it

Counters = list[tuple[int, int]]
"""Bytes into and out of each host since it was made."""


class RefusedError(Exception):
    """This machine does not let us build the network."""


def command(*words: str) -> str:
    """Run a command and hand back what it prints.

    Raises:
        RefusedError: it failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"`{' '.join(words)}` says: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def host_names(tag: str, count: int) -> list[str]:
    """Names of the hosts' namespaces."""
    return [f"hqde-wan-{tag}-{host}" for host in range(count)]


def address(host: int) -> str:
    """Where a host is reached."""
    return f"{SUBNET}.{host + 1}"


def read_counters(names: Sequence[str]) -> Counters:
    """Bytes into and out of each host, as its interface counts them."""
    found = []
    for name in names:
        link = json.loads(command("ip", "-n", name, "-j", "-s", "link", "show", "dev", LINK))[0]["stats64"]
        found.append((int(link["rx"]["bytes"]), int(link["tx"]["bytes"])))
    return found


class Network:
    """Hosts around one switch, each in a namespace; the switch has one too, so that this machine's firewall
    and addresses stay out of it.

    Args:
        tag: sets this network's names apart.
        hosts: how many.
        rate_mbit: of each link, in each direction.
        delay_ms: added to what each host sends.
    """

    def __init__(self, tag: str, hosts: int, rate_mbit: float, delay_ms: float) -> None:
        self.hub = f"hqde-wan-{tag}-hub"
        self.names = host_names(tag, hosts)
        self._made: list[str] = []
        self._rate_mbit, self._delay_ms = rate_mbit, delay_ms

    def build(self) -> None:
        """Make the namespaces and links.

        Raises:
            RefusedError: not allowed here.
        """
        for name in (self.hub, *self.names):
            command("ip", "netns", "add", name)
            self._made.append(name)
        command("ip", "-n", self.hub, "link", "add", "switch", "type", "bridge")
        command("ip", "-n", self.hub, "link", "set", "switch", "up")
        for host, name in enumerate(self.names):
            port = f"port{host}"
            command(
                "ip", "-n", self.hub, "link", "add", port, "type", "veth", "peer", LINK, "netns", name
            )  # made inside the namespaces: the machine's own list of links never shows them
            command("ip", "-n", self.hub, "link", "set", port, "master", "switch", "up")
            command("ip", "-n", name, "address", "add", f"{address(host)}/24", "dev", LINK)
            command("ip", "-n", name, "link", "set", "lo", "up")
            command("ip", "-n", name, "link", "set", LINK, "up")
            # Ray asks which address would lead to the internet.
            command("ip", "-n", name, "route", "add", "default", "dev", LINK)
            self._shape(self.hub, port, delay_ms=0.0)
            self._shape(name, LINK, delay_ms=self._delay_ms)

    def close(self) -> None:
        """Kill what runs in the namespaces, then remove them and with them their links."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave half of it behind
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + KILL_S
            while (pids := self._pids()) and time.monotonic() < end:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(0.5)
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        self._made = []

    def _shape(self, name: str, link: str, *, delay_ms: float) -> None:
        shape = ("tbf", "rate", f"{self._rate_mbit}mbit", "burst", "128kb", "latency", "100ms")
        command("tc", "-n", name, "qdisc", "add", "dev", link, "root", "handle", "1:", *shape)
        if delay_ms:
            late = ("netem", "delay", f"{delay_ms}ms", "limit", "10000")
            command("tc", "-n", name, "qdisc", "add", "dev", link, "parent", "1:1", "handle", "10:", *late)

    def _pids(self) -> list[int]:
        """Processes in the namespaces."""
        found: list[int] = []
        for name in self._made:
            done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            found += map(int, done.stdout.split())
        return found


def why_not() -> str | None:
    """Why this machine cannot have such a network, as far as can be told without trying."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    absent = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"`{absent[0]}` is missing; install iproute2" if absent else None


def start_ray(names: Sequence[str], folder: Path, store_bytes: int) -> None:
    """One node of a Ray cluster in each namespace, of one CPU; the first is the head.

    Raises:
        WorkerError: one does not start.
    """
    environment = ray_environment()
    common = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", "--num-cpus=1"]
    common += ["--num-gpus=0", f"--object-store-memory={store_bytes}", "--log-color=false"]
    common += ["--include-log-monitor=false"]

    def launch(host: int) -> subprocess.Popen[str]:
        mine = [f"--node-ip-address={address(host)}", f"--temp-dir={folder / str(host)}"]
        if host == 0:
            mine += [
                "--head",
                f"--port={PORT}",
                "--include-dashboard=false",
                "--ray-client-server-port=46380",
            ]
        else:
            mine += [f"--address={address(0)}:{PORT}"]
        words = ["ip", "netns", "exec", names[host], *common, *mine]
        log = (folder / f"start-{host}.log").open("w")
        with log:  # a file, not a pipe: the daemons keep it open
            return subprocess.Popen(words, env=environment, stdout=log, stderr=log, text=True)

    for hosts in ([0], range(1, len(names))):
        running = {host: launch(host) for host in hosts}
        for host, process in running.items():
            if process.wait(timeout=START_S):
                said = (folder / f"start-{host}.log").read_text()[-2000:]
                raise WorkerError(f"Ray does not start on host {host}:\n{said}")


def ray_environment() -> dict[str, str]:
    """This process's environment, without what would lead to another Ray."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    # Ray asks for tokens where this user's home happens to hold one; nobody outside can reach this cluster.
    return kept | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
