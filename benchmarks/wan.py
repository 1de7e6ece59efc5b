"""What a plan is worth on a slow network: flat, tree and sharded over links of 100 Mbit/s.

    python benchmarks/wan.py [--hosts 4] [--size 2500000] [--rate-mbit 100] [--delay-ms 0] [--json out.json]

Every host is a network namespace of its own: a raylet of a real Ray cluster and one worker run in it,
and all it has to reach the others is one link, shaped in both directions. The first host also holds the
driver. A synchronisation is what `RayBackend` does between two rounds: it combines the workers' deltas,
fp32 and uncompressed, and every worker fetches the result and begins its next round, here one batch long.
Plans take turns, so that a machine that is busy for a while is so for all of them. Bytes are read from
each host's interface before and after, so loopback and the object store do not count.

Needs root, `ip` and `tc` (iproute2). Where namespaces are not allowed it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hqde.aggregation import Combination, FedAvg, Mean, Update
from hqde.aggregation.rule import shares_of
from hqde.backends.base import Failure
from hqde.backends.ray_settings import RaySettings
from hqde.data import TensorExamples, make_splits
from hqde.errors import HqdeError, WorkerError
from hqde.models import model_spec
from hqde.rounds import Experiment
from hqde.seeding import generator
from hqde.testing.backend_checks import orders_of
from hqde.topology import Links, Topology, cost_of
from hqde.training import Recipe
from hqde.weights import Weights

PLANS = ("flat", "tree", "sharded")
NETWORK = "10.77.0"
PORT = 46379
LINK = "eth0"  # the name of every host's one interface
FEATURES, CLASSES, ROWS = 64, 10, 32
SETTLE_S = 0.3  # for the last acknowledgements to be counted
START_S = 120.0  # for a node to come up
FAN_IN = 4

Counters = list[tuple[int, int]]
"""Bytes into and out of each host since it was made."""


@dataclass(frozen=True)
class Sample:
    """One synchronisation.

    Attributes:
        plan: how the aggregation was spread.
        combine_s, start_s: seconds to combine, and for all workers to fetch the result and train one batch.
        train_s: seconds that the slowest worker says its batch took, part of ``start_s``.
        combined, started: bytes into and out of each host meanwhile.
    """

    plan: str
    combine_s: float
    start_s: float
    train_s: float
    combined: Counters
    started: Counters


@dataclass(frozen=True)
class Figures:
    """What the samples of one plan come to; bytes are medians over the samples.

    Attributes:
        seconds: of each synchronisation.
        train_s: median seconds of the slowest worker's batch.
        driver_in, driver_out: through the driver's host.
        busiest: in and out together, of the host where that is most.
        limit_s: what the bytes alone take: in each half, those of the busiest direction of any link.
        model_busiest, model_s: what ``cost_of`` says.
    """

    plan: str
    seconds: list[float]
    train_s: float
    driver_in: float
    driver_out: float
    busiest: float
    limit_s: float
    model_busiest: float
    model_s: float


# -- figures: pure ------------------------------------------------------------------------------------------


def hidden_width(size: int) -> int:
    """Width of two equal hidden layers that give the network about ``size`` parameters.

    >>> hidden_width(2_500_000)
    1542
    """
    side = FEATURES + CLASSES + 8  # two layers' biases and their norms' scale, shift, mean and variance
    return max(1, round((math.sqrt(side * side + 4 * size) - side) / 2))


def moved(before: Counters, after: Counters) -> Counters:
    """Bytes that crossed each interface between two readings.

    >>> moved([(1, 2)], [(11, 5)])
    [(10, 3)]
    """
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]


def limit_s(halves: Sequence[Counters], bytes_per_s: float) -> float:
    """Seconds that the bytes take on full-duplex links, if one half follows the other.

    >>> limit_s([[(10, 0), (0, 30)], [(0, 20), (5, 5)]], 10.0)
    5.0
    """
    return sum(max(max(pair) for pair in half) for half in halves) / bytes_per_s


def figures_of(plan: str, samples: Sequence[Sample], *, row_bytes: int, bytes_per_s: float) -> Figures:
    """The figures of one plan's samples."""
    hosts = len(samples[0].combined)
    sums = [[(a[0] + b[0], a[1] + b[1]) for a, b in zip(s.combined, s.started, strict=True)] for s in samples]
    links = Links(nodes=hosts, bytes_per_s=bytes_per_s)
    cost = cost_of(plan, num_rows=hosts, row_bytes=row_bytes, fan_in=FAN_IN, links=links)
    return Figures(
        plan=plan,
        seconds=[sample.combine_s + sample.start_s for sample in samples],
        train_s=median(sample.train_s for sample in samples),
        driver_in=median(total[0][0] for total in sums),
        driver_out=median(total[0][1] for total in sums),
        busiest=median(max(map(sum, total)) for total in sums),
        limit_s=median(limit_s([sample.combined, sample.started], bytes_per_s) for sample in samples),
        model_busiest=cost.busiest_bytes,
        model_s=cost.seconds,
    )


def table(rows: Sequence[Figures], row_bytes: int) -> str:
    """All plans as a Markdown table."""
    heads = (
        "plan",
        "sync s, median (min-max)",
        "driver's host in / out MB",
        "busiest host in + out MB",
        "× model",
        "bytes / bandwidth s",
        "`cost_of`: busiest MB",
        "`cost_of`: s",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (
            row.plan,
            f"{median(row.seconds):.2f} ({min(row.seconds):.2f}-{max(row.seconds):.2f})",
            f"{row.driver_in / 1e6:.1f} / {row.driver_out / 1e6:.1f}",
            f"{row.busiest / 1e6:.1f}",
            f"{row.busiest / row_bytes:.2f}",
            f"{row.limit_s:.2f}",
            f"{row.model_busiest / 1e6:.1f}",
            f"{row.model_s:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(rows: Sequence[Figures]) -> str:
    """How many times flat's time and bytes the others save."""
    flat = next((row for row in rows if row.plan == "flat"), None)
    return "\n".join(
        f"flat / {row.plan}: {median(flat.seconds) / median(row.seconds):.2f} × the seconds, "
        f"{flat.busiest / row.busiest:.2f} × the bytes through the busiest host"
        for row in rows
        if flat is not None and row is not flat
    )


def missing_bytes(samples: Sequence[Sample], row_bytes: int) -> str | None:
    """A sentence if less crossed the links than must have: then they are not what was measured.

    However a plan goes about it, each host but one learns the new weights over its link, and each host but
    one hands its row out.
    """
    for sample in samples:
        least = (len(sample.started) - 1) * row_bytes * 0.95
        for half, name in ((sample.combined, "combining"), (sample.started, "starting")):
            seen = sum(pair[0] for pair in half)
            expected = least * (1 - 1 / len(half)) if sample.plan == "sharded" else least
            if seen < expected:
                return (
                    f"{sample.plan}: {name} moved {seen} bytes over all links, {expected:.0f} were expected"
                )
    return None


# -- the network --------------------------------------------------------------------------------------------


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
    return f"{NETWORK}.{host + 1}"


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
        for name in self._made:
            for number in (signal.SIGTERM, signal.SIGKILL):
                end = time.monotonic() + 5.0
                while (pids := self._pids(name)) and time.monotonic() < end:
                    for pid in pids:
                        with suppress(ProcessLookupError):
                            os.kill(pid, number)
                    time.sleep(0.2)
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        self._made = []

    def _shape(self, name: str, link: str, *, delay_ms: float) -> None:
        shape = ("tbf", "rate", f"{self._rate_mbit}mbit", "burst", "128kb", "latency", "100ms")
        command("tc", "-n", name, "qdisc", "add", "dev", link, "root", "handle", "1:", *shape)
        if delay_ms:
            late = ("netem", "delay", f"{delay_ms}ms", "limit", "10000")
            command("tc", "-n", name, "qdisc", "add", "dev", link, "parent", "1:1", "handle", "10:", *late)

    def _pids(self, name: str) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split() if int(pid) != os.getpid()]


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


# -- the driver, inside the first namespace -----------------------------------------------------------------


def experiment_of(size: int, num_workers: int, rounds: int) -> Experiment:
    """A network of about ``size`` parameters and one batch to train it on."""
    inputs = torch.randn(ROWS + 8, FEATURES, generator=generator(0, "wan", "data"))
    splits = make_splits(
        "wan", TensorExamples(inputs, torch.arange(ROWS + 8) % CLASSES), task="classification"
    )
    width = hidden_width(size)
    options = {"hidden": [width, width]}
    return Experiment(
        splits=splits,
        model=model_spec("mlp", input_shape=(FEATURES,), num_outputs=CLASSES, options=options),
        num_workers=num_workers,
        epochs=rounds,
        recipe=Recipe(batch_size=2 * ROWS, optimizer="sgd", momentum=0.0, learning_rate=1e-3),
        topology=Topology(groups=1),
    )


class Driver:
    """Rounds over the cluster, one after the other.

    Args:
        names: of the hosts' namespaces.
        size: parameters, about.
        rounds: how many there will be at most.
    """

    def __init__(self, names: Sequence[str], size: int, rounds: int) -> None:
        from hqde.backends.on_ray import RayBackend

        self._names = names
        self._experiment = experiment_of(size, len(names), rounds)
        settings = RaySettings(address=f"{address(0)}:{PORT}", num_cpus=1.0, fan_in=FAN_IN)
        self._settings, self._round = settings, 0
        self.backend = RayBackend(settings, threads=1)
        self.backend.start(self._experiment.worker_specs(), self._experiment.splits.train)
        self._weights = self._experiment.initial_weights(0)
        self._num_parameters = self.backend.layout(0).num_parameters
        self.row_bytes = self._weights.vector.nbytes

    def synchronise(self, plan: str) -> Sample:
        """One synchronisation, measured; a round is trained before it, for rows cut as the plan is."""
        # One crew for all plans, or they could not take turns: a second one would not find a CPU.
        self.backend._settings = replace(self._settings, plan=plan)
        updates = self._train()
        before = self._counters()
        began = time.perf_counter()
        combined = self.backend.combine(self._combination(updates))
        combine_s = time.perf_counter() - began
        between = self._counters()
        self._weights = Weights(combined.vector, self._weights.integers)
        began = time.perf_counter()
        updates = self._train()
        start_s = time.perf_counter() - began
        after = self._counters()
        train_s = max(update.seconds for update in updates)
        return Sample(plan, combine_s, start_s, train_s, moved(before, between), moved(between, after))

    def idle_bytes_per_s(self, seconds: float) -> float:
        """Bytes per second in and out of the busiest host while nothing happens: what Ray says to itself."""
        before = self._counters()
        time.sleep(seconds)
        return max(map(sum, moved(before, self._counters()))) / (seconds + SETTLE_S)

    def _train(self) -> list[Update]:
        self._round += 1
        orders = [replace(order, start=self._weights) for order in orders_of(self._experiment, self._round)]
        outcomes = list(self.backend.train(orders))
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise WorkerError(
                    f"worker {outcome.worker_id}: {outcome.reason}", worker_id=outcome.worker_id
                )
        return sorted((o for o in outcomes if isinstance(o, Update)), key=lambda update: update.worker_id)

    def _combination(self, updates: Sequence[Update]) -> Combination:
        rows, shares = [update.delta for update in updates], shares_of([1] * len(updates))
        base = self._weights.vector
        return Combination(rows, shares, Mean(), FedAvg(), base, {}, self._num_parameters)

    def _counters(self) -> Counters:
        time.sleep(SETTLE_S)
        return read_counters(self._names)


def drive(arguments: argparse.Namespace) -> None:
    """Measure, and leave what was found in a file for the process outside."""
    torch.set_num_threads(1)
    names = host_names(arguments.inside, arguments.hosts)
    rounds = 2 * len(arguments.plans) * (arguments.repeats + arguments.warmup)
    driver = Driver(names, arguments.size, rounds)
    samples: list[Sample] = []
    try:
        for repeat in range(-arguments.warmup, arguments.repeats):
            for place in range(len(arguments.plans)):
                plan = arguments.plans[(place + repeat) % len(arguments.plans)]
                sample = driver.synchronise(plan)
                print(f"{'warm-up' if repeat < 0 else repeat + 1} {describe(sample)}", flush=True)
                samples += [sample] if repeat >= 0 else []
        idle = driver.idle_bytes_per_s(2.0)
    finally:
        driver.backend.close()
    found = {"row_bytes": driver.row_bytes, "idle_bytes_per_s": idle, "samples": list(map(asdict, samples))}
    arguments.found.write_text(json.dumps(found))


def describe(sample: Sample) -> str:
    """A sample in a line, with each host's MB in and out in both halves."""
    halves = [
        f"{seconds:.2f} s [{', '.join(f'{a / 1e6:.1f}/{b / 1e6:.1f}' for a, b in half)}]"
        for seconds, half in ((sample.combine_s, sample.combined), (sample.start_s, sample.started))
    ]
    return f"{sample.plan}: combine {halves[0]}, start {halves[1]}, training {sample.train_s:.2f} s"


# -- outside ------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Build the network and the cluster, run the driver in it, and take all of it down again.

    Raises:
        RefusedError: the network cannot be built here.
        WorkerError: something in it failed.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="hqde-wan-"))  # short: Ray's sockets have paths of 107 bytes
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = Network(str(os.getpid()), arguments.hosts, arguments.rate_mbit, arguments.delay_ms)
        stack.callback(network.close)
        network.build()
        start_ray(network.names, folder, store_bytes=max(128 << 20, 40 * 4 * arguments.size))
        found = folder / "found.json"
        inside = [sys.executable, __file__, *sys.argv[1:], f"--inside={os.getpid()}", f"--found={found}"]
        words = ["ip", "netns", "exec", network.names[0], *inside]
        with subprocess.Popen(words, env=ray_environment()) as process:
            code = process.wait()
        if code:
            raise WorkerError(f"the driver ended with exit code {code}")
        result: Mapping[str, Any] = json.loads(found.read_text())
        return result


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=4, help="at least 3; the first also holds the driver")
    parser.add_argument("--size", type=int, default=2_500_000, help="parameters of the model, about")
    parser.add_argument("--rate-mbit", type=float, default=100.0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way, on every link")
    parser.add_argument("--repeats", type=int, default=5, help="synchronisations of each plan")
    parser.add_argument("--warmup", type=int, default=1, help="and before them, not counted")
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=PLANS)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not 3 <= arguments.hosts <= 200:
        parser.error(f"--hosts must be 3 to 200, got {arguments.hosts}")
    for name in ("size", "rate_mbit", "repeats"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {getattr(arguments, name)}")
    return arguments


def main() -> int:
    """Measure, then print the table."""
    arguments = parse()
    if arguments.inside:
        drive(arguments)
        return 0
    refusal = why_not()
    if refusal is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            found = measure(arguments)
        except RefusedError as error:
            refusal = str(error)
        except HqdeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    if refusal is not None:
        print(f"wan: no network of namespaces here: {refusal}; nothing was measured")
        return 0
    report(arguments, found)
    return 0


def report(arguments: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Print what was found, and write it down if asked."""
    row_bytes, bytes_per_s = found["row_bytes"], arguments.rate_mbit * 1e6 / 8
    samples = [Sample(**sample) for sample in found["samples"]]
    rows = [
        figures_of(plan, [s for s in samples if s.plan == plan], row_bytes=row_bytes, bytes_per_s=bytes_per_s)
        for plan in arguments.plans
    ]
    print(
        f"\n{arguments.hosts} hosts, one worker each, links of {arguments.rate_mbit:g} Mbit/s each way"
        f"{f', {arguments.delay_ms:g} ms' if arguments.delay_ms else ''}; "
        f"model {row_bytes / 1e6:.2f} MB fp32; {arguments.repeats} synchronisations per plan, plans in turn\n"
    )
    print(table(rows, row_bytes) + "\n")
    print(ratios(rows))
    print(
        f"of each synchronisation {max(row.train_s for row in rows):.2f} s are the one batch; "
        f"idle, the busiest host's link carries {found['idle_bytes_per_s'] / 1e3:.1f} kB/s"
    )
    missing = missing_bytes(samples, row_bytes)
    if missing:
        print(f"warning: {missing}; not everything went over the links", file=sys.stderr)
    if arguments.json is not None:
        settings = {name: getattr(arguments, name) for name in ("hosts", "size", "rate_mbit", "delay_ms")}
        whole = settings | dict(found) | {"figures": list(map(asdict, rows))}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
