"""What Ray costs: rounds of two workers on it against the same arithmetic in two bare processes, in pairs.

    python benchmarks/ray_overhead.py [--data cifar10:DIR] [--rounds 5] [--quick] [--json FILE]

A round: each of two workers, one torch thread each, trains `cnn` on its half of the images (AdamW, batches
of 128, gradients clipped), and their weights are averaged. On Ray that is the engine and `RayBackend`; bare
it is a plain loop in two spawned processes, with weights in shared memory and the average taken by the
parent. Both sides live for the whole run; one waits while the other works. Pairs alternate, bare first in
every other one, so that a drift of the machine's speed meets both alike. At the end the weights of both
sides must agree, and so must the steps they took. Ray's seconds are those of the engine's phases "train" and
"aggregate": orders, supervision, object store, admission, averaging and server step.

`ray_prediction.py` is about prediction.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing import get_context

from hqde.backends import RaySettings
from hqde.data import Split, Splits, TensorExamples, load_splits, make_splits
from hqde.errors import HqdeError
from hqde.models import ModelSpec, model_spec
from hqde.rounds import Engine, Experiment
from hqde.rounds.events import Event, RoundRecord
from hqde.seeding import derive_seed
from hqde.topology import Topology
from hqde.training import Diversity, Recipe

WORKERS = 2
SEED = 0
BATCH, RATE, DECAY, CLIP, DROPOUT = 128, 1e-3, 0.01, 1.0, 0.1
LEAST_ROUND_S = 5.0


# -- the bare side -----------------------------------------------------------------------------------------


@dataclass
class Bare:
    """What a bare process is given: all tensors are in shared memory."""

    worker: int
    model: ModelSpec
    images: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor
    start: Tensor  # (d,) written by the parent before each round
    end: Tensor  # (d,) written by the process after each round


def bare_loop(given: Bare, pipe: Any) -> None:
    """Train a round for each (round, shard) that arrives; answer with the number of steps and the loss."""
    torch.set_num_threads(1)
    torch.manual_seed(derive_seed(SEED, "worker", given.worker, "build"))
    model = given.model.build(dropout_rate=DROPOUT).to(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
        foreach=True,
    )
    travelling = [
        *(p.detach() for p in parameters),
        *(b for b in model.buffers() if b.is_floating_point()),
    ]
    mean, std = given.mean.view(-1, 1, 1), given.std.view(-1, 1, 1)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        round_index, shard = order
        copy_flat(given.start, travelling)
        draws = torch.Generator().manual_seed(derive_seed(SEED, "worker", given.worker, "order", round_index))
        batches = shard[torch.randperm(len(shard), generator=draws)].split(BATCH)
        torch.manual_seed(derive_seed(SEED, "worker", given.worker, "round", round_index))
        loss_sum, correct = torch.zeros(()), torch.zeros(())
        model.train()
        for index in batches:
            inputs = (given.images[index].to(torch.float32) - mean).div_(std)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            targets = given.targets[index]
            optimizer.zero_grad(set_to_none=True)
            outputs = model(inputs)
            losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
            losses.mean().backward()
            nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
            optimizer.step()
            loss_sum += losses.detach().sum()
            correct += (outputs.detach().argmax(dim=1) == targets).sum()
        torch.cat([tensor.reshape(-1) for tensor in travelling], out=given.end)
        pipe.send((len(batches), float(loss_sum) / len(shard)))


def copy_flat(vector: Tensor, tensors: list[Tensor]) -> None:
    """Write a flat vector into tensors, in order."""
    offset = 0
    for tensor in tensors:
        tensor.copy_(vector[offset : offset + tensor.numel()].view(tensor.shape))
        offset += tensor.numel()


class BareSide:
    """The two processes and their average."""

    def __init__(self, experiment: Experiment) -> None:
        context = get_context("spawn")
        train, scale = experiment.splits.train, experiment.normalization
        images, targets = train.fetch(torch.arange(len(train)))
        assert isinstance(images, Tensor)
        images, targets = images.clone().share_memory_(), targets.clone().share_memory_()
        self.vector = experiment.initial_weights(0).vector.clone().share_memory_()
        self.steps = 0
        self._ends, self._pipes, self._processes = [], [], []
        for worker in range(WORKERS):
            pipe, other = context.Pipe()
            end = torch.empty_like(self.vector).share_memory_()
            given = Bare(worker, experiment.model, images, targets, scale.mean, scale.std, self.vector, end)
            process = context.Process(target=bare_loop, args=(given, other), daemon=True)
            process.start()
            self._ends.append(end)
            self._pipes.append(pipe)
            self._processes.append(process)
        for pipe in self._pipes:
            assert pipe.recv() == "ready"

    def round(self, round_index: int, shards: list[Tensor]) -> float:
        """One round of both; returns its seconds."""
        began = time.perf_counter()
        for pipe, shard in zip(self._pipes, shards, strict=True):
            pipe.send((round_index, shard))
        answers = [pipe.recv() for pipe in self._pipes]
        deltas = [end.sub_(self.vector) for end in self._ends]
        total = sum(map(len, shards))
        mean = deltas[0] * (len(shards[0]) / total) + deltas[1] * (len(shards[1]) / total)
        self.vector += mean
        seconds = time.perf_counter() - began
        self.steps += sum(steps for steps, _ in answers)
        return seconds

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


# -- both sides in turn ------------------------------------------------------------------------------------


class Alternation:
    """Listens to the engine and runs the bare rounds between its rounds: Ray bare, bare Ray, Ray bare, …

    The first round of both warms up and is not counted.
    """

    def __init__(self, bare: BareSide, experiment: Experiment, rounds: int) -> None:
        self._bare, self._experiment, self._last = bare, experiment, rounds
        self.ray_s: list[float] = []
        self.bare_s: list[float] = []
        self.events: list[Event] = []
        self.ray_steps = 0

    def on_start(self, plans: Any, first_round: int) -> None:
        """Nothing to do."""

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Nothing to do."""

    def on_event(self, event: Event) -> None:
        """Faults would spoil the comparison: they are told at the end."""
        self.events.append(event)

    def on_round(self, record: RoundRecord) -> None:
        """A round of Ray's is over: run the bare rounds that come before its next one."""
        self.ray_s.append(record.phases["train"] + record.phases["aggregate"])
        for worker in record.workers:
            self.ray_steps += -(-worker.samples // BATCH)
        own = ", ".join(f"{worker.seconds:.2f}" for worker in record.workers)
        print(f"round {record.round}: on Ray {self.ray_s[-1]:.2f} s (workers: {own})", flush=True)
        wanted = min(record.round + record.round % 2, self._last)
        while len(self.bare_s) < wanted:
            number = len(self.bare_s) + 1
            shards = self._experiment.shards(number)
            self.bare_s.append(self._bare.round(number, [shards[worker] for worker in range(WORKERS)]))
            print(f"round {number}: bare {self.bare_s[-1]:.2f} s", flush=True)


def compare(splits: Splits, rounds: int) -> dict[str, Any]:
    """Rounds of both sides in one run, the agreement of their weights, and their seconds."""
    from hqde.backends.on_ray import RayBackend

    experiment = experiment_of(splits, WORKERS, rounds + 1, Topology(groups=1))
    bare = BareSide(experiment)
    turns = Alternation(bare, experiment, rounds + 1)
    backend = RayBackend(RaySettings(), threads=1)
    result = Engine(experiment, backend, listener=turns).run()
    vector = result.state.committed[0].vector
    difference = float((vector - bare.vector).abs().max())
    bare.close()
    if turns.ray_steps != bare.steps:
        raise SystemExit(f"Ray took {turns.ray_steps} steps, the bare side {bare.steps}")
    if not difference <= 1e-5:
        raise SystemExit(f"the weights of both sides differ by {difference:.3g}")
    return {
        "ray_s": turns.ray_s[1:],
        "bare_s": turns.bare_s[1:],
        "warm_up_s": [turns.ray_s[0], turns.bare_s[0]],
        "steps": bare.steps,
        "largest_difference": difference,
        "events": [event.reason for event in turns.events],
    }


def experiment_of(splits: Splits, workers: int, epochs: int, topology: Topology) -> Experiment:
    """The run on Ray."""
    return Experiment(
        splits=splits,
        model=model_spec("cnn", input_shape=splits.schema.input_shape, num_outputs=splits.schema.num_classes),
        num_workers=workers,
        epochs=epochs,
        recipe=Recipe(
            batch_size=BATCH,
            learning_rate=RATE,
            weight_decay=DECAY,
            clip_norm=CLIP,
            schedule="constant",
            warmup=0.0,
        ),
        topology=topology,
        diversity=Diversity(learning_rate_spread=0.0, dropout_spread=0.0),
        dropout_rate=DROPOUT,
        partitioner=Split(),
        evaluate_every=10_000,
        calibrate=False,
        seed=SEED,
    )


def read_data(source: str | None, images: int, quick: bool) -> Splits:
    """CIFAR-10, or random images of its shape."""
    if source is not None:
        fraction = 0.1
        return load_splits(source, max_train=round(images / (1 - fraction)), validation_fraction=fraction)
    print("ray_overhead: no --data: random images of CIFAR-10's shape stand in, the arithmetic is the same")
    draws = torch.Generator().manual_seed(0)

    def rows(count: int) -> TensorExamples:
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draws)
        return TensorExamples(pixels, torch.arange(count) % 10)

    test = rows(1_000 if quick else 5_000)
    return make_splits("random", rows(images), validation=rows(100), test=test, task="classification")


def report(result: dict[str, Any]) -> str:
    """The pairs as Markdown."""
    rounds = result["rounds"]
    lines = ["| pair | on Ray s | bare s | ratio |", "|---" * 4 + "|"]
    ratios = [a / b for a, b in zip(rounds["ray_s"], rounds["bare_s"], strict=True)]
    for pair, (a, b, ratio) in enumerate(zip(rounds["ray_s"], rounds["bare_s"], ratios, strict=True), 1):
        lines.append(f"| {pair} | {a:.2f} | {b:.2f} | {ratio:.3f} |")
    lines.append(
        f"| median | {median(rounds['ray_s']):.2f} | {median(rounds['bare_s']):.2f} | {median(ratios):.3f} |"
    )
    lines.append("")
    lines.append(
        f"Ratio: median {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) over {len(ratios)} "
        f"pairs; {rounds['steps']} steps on either side; largest difference of a weight "
        f"{rounds['largest_difference']:.3g}."
    )
    if min(rounds["bare_s"]) < LEAST_ROUND_S:
        lines.append(f"Rounds were shorter than {LEAST_ROUND_S:g} s: give more --images to judge by them.")
    lines += [f"Event: {reason}" for reason in rounds["events"]]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="cifar10:DIR; left out, random images of the same shape")
    parser.add_argument("--rounds", type=int, default=7, help="pairs that count")
    parser.add_argument("--images", type=int, default=24_000, help="training images in a round, both workers")
    parser.add_argument("--quick", action="store_true", help="two short pairs, to see that it works")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.rounds, arguments.images = 2, 2_560
    try:
        splits = read_data(arguments.data, arguments.images, arguments.quick)
        result = {
            "data": splits.name,
            "cpus": len(os.sched_getaffinity(0)),
            "torch": torch.__version__,
            "images": arguments.images,
            "rounds": compare(splits, arguments.rounds),
        }
    except HqdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\n" + report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
