"""Where the time of a step goes, beside what the device can do at best."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from hqde.backends import torch_threads
from hqde.errors import RunError
from hqde.memory import freed_memory_kept
from hqde.planning.probing import probe_orders
from hqde.rounds import Experiment
from hqde.training import Order, Worker

PARTS = ("data", "forward", "backward", "optimizer")
WARM_UP_STEPS = 2
TRACED_STEPS = 10
TIMED_STEPS = 40
GEMM_SIZE = 1024
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StepProfile:
    """Some steps of one worker that is alone on the device.

    Attributes:
        steps, samples: how many were timed.
        seconds: of all of them together.
        parts_s: seconds of ``data``, ``forward``, ``backward``, ``optimizer``, and the rest as ``other``.
        flop_per_sample: floating point operations of a forward and a backward pass, as PyTorch counts them:
            those of matrix products and convolutions.
        gemm_flop_per_s: of a matrix product in the training's precision, measured here.
        copy_bytes_per_s: bytes read and written by a copy, measured here.
        threads: torch threads.
        precision: of the training.
    """

    steps: int
    samples: int
    seconds: float
    parts_s: dict[str, float]
    flop_per_sample: float
    gemm_flop_per_s: float
    copy_bytes_per_s: float
    threads: int
    precision: str

    @property
    def samples_per_s(self) -> float:
        """Of this one worker."""
        return self.samples / self.seconds

    @property
    def fraction_of_peak(self) -> float:
        """Of the measured matrix product's speed."""
        return self.samples_per_s * self.flop_per_sample / self.gemm_flop_per_s


@freed_memory_kept()
def profile_steps(experiment: Experiment, *, threads: int = 0, trace: Path | None = None) -> StepProfile:
    """Time some steps of worker 0 as the run trains it, trace a few more, and measure the device.

    Args:
        experiment: what is trained; it is not changed.
        threads: torch threads; 0 leaves PyTorch's choice.
        trace: where a trace goes, for chrome://tracing or Perfetto; left out, none is made.
    """
    with torch_threads(threads):
        worker = Worker(experiment.worker_specs()[0], experiment.splits.train)
        order = probe_orders(experiment, 1)[0]
        _train(worker, order, WARM_UP_STEPS)
        parts: dict[str, float] = defaultdict(float)
        worker.mark = lambda part: _timed(part, parts, experiment.device)
        began = time.perf_counter()
        steps, samples = _train(worker, order, TIMED_STEPS)
        seconds = time.perf_counter() - began
        parts["other"] = seconds - sum(parts.values())
        worker.mark = lambda part: nullcontext()  # noqa: ARG005
        with FlopCounterMode(display=False) as counted:
            _, rows = _train(worker, order, 1)
        flop = counted.get_total_flops() / rows
        if trace is not None:
            _trace(worker, order, trace, experiment.device)
        precision = experiment.recipe_of(0).precision
        return StepProfile(
            steps,
            samples,
            seconds,
            {part: parts[part] for part in (*PARTS, "other")},
            flop,
            gemm_flop_per_s(precision, experiment.device),
            copy_bytes_per_s(experiment.device),
            torch.get_num_threads(),
            precision,
        )


def gemm_flop_per_s(precision: str, device: str = "cpu") -> float:
    """Speed of a square matrix product, the best of several."""
    dtype = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}[precision]
    left, right = (torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=dtype, device=device) for _ in range(2))
    return 2 * GEMM_SIZE**3 / _best(lambda: left @ right, device)


def copy_bytes_per_s(device: str = "cpu") -> float:
    """Bytes that a copy of a large tensor reads and writes in a second, the best of several."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _best(lambda: target.copy_(source), device)


def run_seconds(history: Path) -> dict[str, float]:
    """Where the seconds of a run's rounds went, by phase, and how long lanes stood idle while others trained.

    Args:
        history: a ``history.jsonl``.

    Raises:
        RunError: there is none, or it holds no round.
    """
    try:
        rounds = [json.loads(line) for line in history.read_text().splitlines()]
    except OSError as error:
        raise RunError(f"{history} cannot be read: {error}") from error
    if not rounds:
        raise RunError(f"{history} holds no round")
    found: dict[str, float] = defaultdict(float)
    for record in rounds:
        for phase, seconds in record["phases"].items():
            found[phase] += seconds
        found["worked"] += sum(worker["seconds"] for worker in record["workers"])
    return dict(found)


def describe_profile(
    steps: StepProfile, run: dict[str, float], *, lanes: int, worker_samples_per_s: float | None
) -> str:
    """One page of text.

    Args:
        steps: of one worker.
        run: what ``run_seconds`` returned.
        lanes: workers side by side in the run.
        worker_samples_per_s: of the run.
    """
    lines = [
        f"{steps.steps} steps of worker 0 alone, {steps.threads} thread(s), {steps.precision}",
        "",
        *_shares(steps.parts_s, steps.steps),
        "",
        f"{steps.samples_per_s:,.0f} samples/s of one worker, {steps.flop_per_sample / 1e6:,.2f} MFLOP each: "
        f"{steps.samples_per_s * steps.flop_per_sample / 1e9:,.1f} GFLOP/s, {steps.fraction_of_peak:.1%} of "
        f"a {GEMM_SIZE}³ matrix product ({steps.gemm_flop_per_s / 1e9:,.1f} GFLOP/s)",
        f"a copy reads and writes {steps.copy_bytes_per_s / 1e9:,.1f} GB/s",
        "",
    ]
    train, worked = run.get("train", 0.0), run.get("worked", 0.0)
    phases = {name: seconds for name, seconds in run.items() if name != "worked"}
    whole = sum(phases.values())
    lines += [f"the run's rounds: {whole:.2f} s"]
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:<12}{seconds:10.3f} s {seconds / max(whole, 1e-9):7.1%}")
    sync = sum(run.get(name, 0.0) for name in ("aggregate", "encode", "commit"))
    idle = max(0.0, lanes * train - worked)
    lines.append(f"  synchronisation (aggregate, encode, commit): {sync:.3f} s")
    lines.append(f"  idle: {idle:.3f} s of {lanes * train:.3f} lane-seconds while others trained")
    if worker_samples_per_s is not None:
        ideal = lanes * steps.samples_per_s
        lines.append(
            f"{worker_samples_per_s:,.0f} worker-samples/s in {lanes} lane(s): "
            f"{worker_samples_per_s / ideal:.1%} of {lanes} × one worker alone"
        )
    return "\n".join(lines) + "\n"


def _shares(parts: dict[str, float], steps: int) -> list[str]:
    whole = sum(parts.values())
    return [
        f"  {part:<12}{1e3 * seconds / steps:10.3f} ms/step {seconds / whole:7.1%}"
        for part, seconds in parts.items()
    ]


def _train(worker: Worker, order: Order, steps: int) -> tuple[int, int]:
    """Steps made, at most a round's, and samples trained on."""
    update = worker.train_round(replace(order, num_batches=steps))
    size = worker.spec.recipe.batch_size
    return math.ceil(update.num_samples / size), update.num_samples


@contextmanager
def _timed(part: str, into: dict[str, float], device: str) -> Iterator[None]:
    _wait(device)
    began = time.perf_counter()
    yield
    _wait(device)
    into[part] += time.perf_counter() - began


def _trace(worker: Worker, order: Order, file: Path, device: str) -> None:
    activities = [ProfilerActivity.CPU]
    if torch.device(device).type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    worker.mark = record_function
    with profile(activities=activities, acc_events=True) as seen:
        _train(worker, order, TRACED_STEPS)
    file.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(file))


def _best(work: Any, device: str) -> float:
    """Seconds of the fastest of a few."""
    found = math.inf
    for _ in range(8):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        found = min(found, time.perf_counter() - began)
    return found


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
