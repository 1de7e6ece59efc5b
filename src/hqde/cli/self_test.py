"""The self-tests of ``hqde doctor``: about five seconds of what a run does, with its speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from hqde.aggregation import make_rule, shares_of
from hqde.backends import LocalBackend
from hqde.cli.examination import Finding, problem
from hqde.compression import PackedCodec, decode
from hqde.config import build_config, build_experiment, load_data, resolve
from hqde.errors import HqdeError, WorkerError
from hqde.rounds import Engine

T = TypeVar("T")

WEIGHTS = 2**20
ROWS = 8
EACH_S = 0.8


@dataclass(frozen=True)
class Speed:
    """A self-test's result: a sentence, and its figure with its unit."""

    words: str
    figure: float
    unit: str


def self_tests() -> Iterator[tuple[Finding, Speed | None]]:
    """Every test's finding, and its speed where it passed."""
    for what, test in (("training", _train), ("packing", _pack), ("aggregation", _aggregate)):
        yield _timed(f"self-test {what}", test)


def _timed(what: str, test: Callable[[], Speed]) -> tuple[Finding, Speed | None]:
    began = time.perf_counter()
    try:
        speed = test()
    except (HqdeError, RuntimeError) as error:
        cure = f"it failed with {type(error).__name__}: {error}".splitlines()[0]
        return problem(what, "failed", cure), None
    return Finding(what, f"{speed.words} ({time.perf_counter() - began:.1f} s)"), speed


def _train() -> Speed:
    """Two workers, four epochs of digits, averaged after each, and a prediction."""
    tables = {"run": {"workers": 2, "epochs": 4}, "topology": {"groups": 1}, "model": {"name": "mlp"}}
    config = build_config(tables)
    splits = load_data(config)
    result = Engine(build_experiment(resolve(config, splits), splits), LocalBackend()).run()
    totals = result.state.totals
    accuracy = result.ensemble.evaluate(splits.test).accuracy or 0.0
    if accuracy < 0.5:
        raise WorkerError(f"digits reach an accuracy of {accuracy:.2f} only; PyTorch computes wrongly here")
    rate = totals.worker_samples / totals.train_s
    return Speed(
        f"trained digits to {accuracy:.2f} at {rate:,.0f} worker-samples/s", rate, "worker_samples_per_s"
    )


def _pack() -> Speed:
    """Pack a million weights at four bits, and unpack them."""
    vector = torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0))
    codec = PackedCodec(bits=4.0)
    seconds, packet = _repeat(lambda: codec.encode(vector))
    error = float((decode(packet) - vector).norm() / vector.norm())
    if error > 0.2:
        raise WorkerError(f"four bits leave an error of {error:.2f} where 0.10 is usual")
    rate = vector.nbytes / seconds / 1e6
    words = (
        f"packed {WEIGHTS:,} weights into {8 * packet.nbytes / WEIGHTS:.2f} bits each at {rate:,.0f} MB/s, "
        f"with an error of {100 * error:.0f} %"
    )
    return Speed(words, rate, "float32_mb_per_s")


def _aggregate() -> Speed:
    """The geometric median of eight updates of a million weights, two of them far off."""
    rows = torch.randn(ROWS, WEIGHTS, generator=torch.Generator().manual_seed(0))
    rows[:2] += 100.0
    rule, shares = make_rule("geometric_median", num_byzantine=2), shares_of([1] * ROWS)
    seconds, aggregate = _repeat(lambda: rule(rows, shares))
    if float(aggregate.value.mean()) > 5.0:
        raise WorkerError("a robust rule followed two bad workers of eight")
    rate = rows.nbytes / seconds / 1e6
    words = f"aggregated {ROWS} updates of {WEIGHTS:,} weights robustly at {rate:,.0f} MB/s"
    return Speed(words, rate, "float32_mb_per_s")


def _repeat(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the quickest of a few repetitions, and the last result."""
    best, end = float("inf"), time.perf_counter() + EACH_S
    while True:
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
        if time.perf_counter() > end:
            return best, result
