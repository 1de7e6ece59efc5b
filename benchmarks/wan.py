"""What a plan is worth on a slow network: flat, tree and sharded over links of 100 Mbit/s.

    python benchmarks/wan.py [--hosts 4] [--size 2500000] [--rate-mbit 100] [--delay-ms 0] [--json out.json]

Every host is a network namespace of its own: a raylet of a real Ray cluster and one worker run in it,
and all it has to reach the others is one link, shaped in both directions. The first host also holds the
driver. A synchronisation is what `RayBackend` does between two rounds: it combines the workers' deltas,
fp32 and uncompressed, and every worker fetches the result and begins its next round, here one batch long.
Plans take turns, so that a machine that is busy for a while is so for all of them. Bytes are read from
each host's interface before and after, so loopback and the object store do not count.

Ray ends a node's idle processes after a second when its actors hold all CPUs, and tree and sharded then
wait for new ones. `RAY_idle_worker_killing_time_threshold_ms=3600000` in the environment keeps them.

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
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
from hqde.topology import Topology
from hqde.training import Recipe
from hqde.weights import Weights
from namespaces import (
    PORT,
    Counters,
    Network,
    RefusedError,
    address,
    host_names,
    ray_environment,
    read_counters,
    start_ray,
    why_not,
)
from wan_figures import FAN_IN, Sample, figures_of, missing_bytes, moved, ratios, table

PLANS = ("flat", "tree", "sharded")
FEATURES, CLASSES, ROWS = 64, 10, 32
SETTLE_S = 0.3  # for the last acknowledgements to be counted


# -- the driver, inside the first namespace -----------------------------------------------------------------


def hidden_width(size: int) -> int:
    """Width of two equal hidden layers that give the network about ``size`` parameters.

    >>> hidden_width(2_500_000)
    1542
    """
    side = FEATURES + CLASSES + 8  # two layers' biases and their norms' scale, shift, mean and variance
    return max(1, round((math.sqrt(side * side + 4 * size) - side) / 2))


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
        rounds: how many there will be.
    """

    def __init__(self, names: Sequence[str], size: int, rounds: int) -> None:
        from hqde.backends.on_ray import RayBackend

        self._names = names
        self._experiment = experiment_of(size, len(names), rounds)
        settings = RaySettings(address=f"{address(0)}:{PORT}", num_cpus=1.0, fan_in=FAN_IN)
        self._settings, self._round = settings, 0
        self._updates: list[Update] = []
        self.backend = RayBackend(settings, threads=1)
        self.backend.start(self._experiment.worker_specs(), self._experiment.splits.train)
        self._weights = self._experiment.initial_weights(0)
        self._num_parameters = self.backend.layout(0).num_parameters
        self.row_bytes = self._weights.vector.nbytes

    def turn(self, plan: str, count: int) -> list[Sample]:
        """Synchronisations by one plan, the first of them not counted: it starts from weights that lie where
        the plan before has left them, and from processes that are not there yet.
        """
        # One crew for all plans, or they could not take turns: a second one would not find a CPU.
        self.backend.settings = replace(self._settings, plan=plan)
        self._updates = self._train()
        return [self._synchronise(plan) for _ in range(1 + count)][1:]

    def _synchronise(self, plan: str) -> Sample:
        task = self._combination(self._updates)
        before = self._counters()
        began = time.perf_counter()
        combined = self.backend.combine(task)
        combine_s = time.perf_counter() - began
        between = self._counters()
        self._weights = Weights(combined.vector, self._weights.integers)
        began = time.perf_counter()
        self._updates = self._train()
        start_s = time.perf_counter() - began
        after = self._counters()
        train_s = max(update.seconds for update in self._updates)
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
    rounds = len(arguments.plans) * arguments.turns * (arguments.in_a_row + 2)
    driver = Driver(names, arguments.size, rounds)
    samples: list[Sample] = []
    try:
        for turn in range(arguments.turns):
            for place in range(len(arguments.plans)):
                plan = arguments.plans[(place + turn) % len(arguments.plans)]
                for sample in driver.turn(plan, arguments.in_a_row):
                    print(f"turn {turn + 1}: {describe(sample)}", flush=True)
                    samples.append(sample)
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
        if code := subprocess.Popen(words, env=ray_environment()).wait():
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
    parser.add_argument("--turns", type=int, default=3, help="of each plan")
    parser.add_argument("--in-a-row", type=int, default=2, help="synchronisations measured in a turn")
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=PLANS)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not 3 <= arguments.hosts <= 200:
        parser.error(f"--hosts must be 3 to 200, got {arguments.hosts}")
    for name in ("size", "rate_mbit", "turns", "in_a_row"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {getattr(arguments, name)}")
    return arguments


def main() -> int:
    """Measure, then print the table."""
    arguments = parse()
    if arguments.inside:
        return ended(lambda: drive(arguments))
    refusal = why_not()
    if refusal is None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))  # by way of the cleaning up
        try:
            return ended(lambda: report(arguments, measure(arguments)))
        except RefusedError as error:
            refusal = str(error)
    print(f"wan: no network of namespaces here: {refusal}; nothing was measured")
    return 0


def ended(work: Callable[[], None]) -> int:
    """Do it, and say how it ended as an exit code."""
    try:
        work()
    except HqdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
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
        f"model {row_bytes / 1e6:.2f} MB fp32; "
        f"{arguments.turns} turns of each plan, {arguments.in_a_row} synchronisations in each\n"
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
