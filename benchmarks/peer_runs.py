"""One contender of `peers.py`: trains the members once, in a process of its own, and says what it took.

    python benchmarks/peer_runs.py plain --task TASK.pt --seed 0

The last line of the output is JSON. Everything between raw rows in memory and trained members counts as
training: normalisation, batches, a look at the validation rows after every epoch, synchronisation. The parent
wrote the rows and the settings to TASK.pt.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Task = dict[str, Any]
Rows = dict[str, tuple[Tensor, Tensor]]


def build(task: Task) -> nn.Module:
    """One member, from HQDE's own reference networks."""
    from hqde.models import CNN, MLP

    shape = tuple(task["train"][0].shape[1:])
    return CNN(shape, 10) if task["model"] == "cnn" else MLP(shape, 10, hidden=task["hidden"])


def prepared(task: Task) -> Rows:
    """Rows as a plain loop wants them: float, mean 0 and deviation 1 by channel."""
    images = task["train"][0].float()
    dims = (0, 2, 3)
    mean, std = images.mean(dims, keepdim=True), images.std(dims, keepdim=True)
    return {
        name: ((task[name][0].float() - mean) / std, task[name][1])
        for name in ("train", "validation", "test")
    }


@torch.inference_mode()
def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities, 128 rows at a time."""
    model.eval()
    return torch.cat([functional.softmax(model(rows).float(), dim=1) for rows in images.split(128)])


def accuracy(pooled: Tensor, labels: Tensor) -> float:
    """Of mean probabilities."""
    return float((pooled.argmax(1) == labels).float().mean())


def train_member(task: Task, rows: Rows, seed: int) -> nn.Module:
    """What anybody would write: AdamW, warm-up and cosine, clipping, the validation rows every epoch."""
    torch.manual_seed(seed)
    model, (images, labels) = build(task), rows["train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=task["rate"], weight_decay=0.01)
    steps = task["epochs"] * -(-len(labels) // task["batch"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, task["rate"], total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
    )
    for _ in range(task["epochs"]):
        model.train()
        for index in torch.randperm(len(labels)).split(task["batch"]):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[index]), labels[index]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        accuracy(probabilities(model, rows["validation"][0]), rows["validation"][1])
    return model


def measured(
    task: Task, train: Callable[[], Callable[[], Tensor]], warm_up: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Seconds and accuracy of a contender. What it imports is not timed.

    Args:
        task: what is trained.
        train: trains, and returns a function that predicts the test rows, ``(n, classes)``.
        warm_up: makes libraries import what they import when they are first used.
    """
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds
    warm_up()
    began, began_cpu = time.perf_counter(), _processor_s()
    predict = train()
    train_s, cpu_s = time.perf_counter() - began, _processor_s() - began_cpu
    predict()
    began = time.perf_counter()
    pooled = predict()
    predict_s = time.perf_counter() - began
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "train_s": train_s,
        "cpu_s": cpu_s,
        "worker_samples": task["members"] * task["epochs"] * len(task["train"][1]),
        "predict_s": predict_s,
        "images": len(task["test"][1]),
        "accuracy": accuracy(pooled, task["test"][1]),
        "peak_rss_bytes": peak * 1024,
    }


def own_usage() -> dict[str, float]:
    """What the calling process took so far; processes that are not children send it home."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "process": os.getpid(),
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_rss_bytes": used.ru_maxrss * 1024,
    }


def with_usage(found: dict[str, float], usages: list[dict[str, float]]) -> dict[str, float]:
    """Figures of a contender that trains in Ray's processes, which are not children of the calling one.

    The peak is that of the calling process and of those in `usages`: Ray's own are left out, and so are
    children, since a process that starts from a large one is told to have had that one's peak.
    """
    last = {usage["process"]: usage for usage in sorted(usages, key=lambda usage: usage["cpu_s"])}.values()
    return found | {
        "cpu_s": found["cpu_s"] + sum(usage["cpu_s"] for usage in last),
        "peak_rss_bytes": sum(usage["peak_rss_bytes"] for usage in (own_usage(), *last)),
    }


def _processor_s() -> float:
    """Processor time so far, of ended child processes too."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def seeds_of(task: Task, seed: int) -> list[int]:
    """A seed for each member."""
    return [1000 * seed + member for member in range(task["members"])]


def predictor(models: list[nn.Module], images: Tensor) -> Callable[[], Tensor]:
    """A function that returns the members' mean probabilities, ``(n, classes)``."""
    return lambda: torch.stack([probabilities(model, images) for model in models]).mean(0)


def plain(task: Task, seed: int) -> dict[str, float]:
    """A plain PyTorch loop over the members, with all threads."""

    def train() -> Callable[[], Tensor]:
        rows = prepared(task)
        models = [train_member(task, rows, each) for each in seeds_of(task, seed)]
        return predictor(models, rows["test"][0])

    return measured(task, train)


@cache
def _opened(path: str) -> tuple[Task, Rows]:
    """The task and its prepared rows, once in a process."""
    task: Task = torch.load(path)
    return task, prepared(task)


def state_of_member(path: str, seed: int) -> dict[str, Tensor]:
    """The weights of one member, trained with one thread in the process that calls this."""
    torch.set_num_threads(1)
    return train_member(*_opened(path), seed).state_dict()


def predictor_of_states(task: Task, states: list[dict[str, Tensor]]) -> Callable[[], Tensor]:
    """The same prediction as the plain loop's, from weights that other processes trained."""
    models = [build(task) for _ in states]
    for model, state in zip(models, states, strict=True):
        model.load_state_dict(state)
    return predictor(models, prepared(task)["test"][0])


def processes(task: Task, seed: int) -> dict[str, float]:
    """The same loop in a process per core, one thread each; processes start within the time."""

    def train() -> Callable[[], Tensor]:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
            states = list(pool.map(partial(state_of_member, task["path"]), seeds_of(task, seed)))
        return predictor_of_states(task, states)

    return measured(task, train)


def elsewhere(package: str) -> Callable[[Task, int], dict[str, float]]:
    """A contender in a module of its own, `peer_PACKAGE.py`, that is imported when it runs."""
    return lambda task, seed: importlib.import_module(f"peer_{package}").run(task, seed)


class Model(nn.Module):
    """The member as TorchEnsemble wants it: a class without arguments."""

    task: ClassVar[Task] = {}

    def __init__(self) -> None:
        super().__init__()
        self.net = build(self.task)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.net(images)
        return out


def torchensemble(task: Task, seed: int, *, jobs: int = 1) -> dict[str, float]:
    """TorchEnsemble's VotingClassifier: the same optimizer, a cosine by epoch, no clipping (it has none)."""
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
    from torchensemble import VotingClassifier

    logger = logging.getLogger("torchensemble")
    logger.addHandler(logging.NullHandler())
    Model.task = {name: task[name] for name in ("model", "hidden")} | {"train": (task["train"][0][:1],)}

    def train() -> Callable[[], Tensor]:
        torch.manual_seed(seed)
        rows = prepared(task)
        data = TensorDataset(*rows["train"])
        batches = BatchSampler(RandomSampler(data), task["batch"], drop_last=False)
        loader = DataLoader(data, sampler=batches, batch_size=None)  # whole tensors, not row by row
        judged = DataLoader(TensorDataset(*rows["validation"]), batch_size=128)
        model = VotingClassifier(estimator=Model, n_estimators=task["members"], cuda=False, n_jobs=jobs)
        model.set_optimizer("AdamW", lr=task["rate"], weight_decay=0.01)
        model.set_scheduler("CosineAnnealingLR", T_max=task["epochs"])
        model.set_criterion(nn.CrossEntropyLoss())
        model.fit(loader, epochs=task["epochs"], test_loader=judged, save_model=False, log_interval=10**9)
        model.eval()

        @torch.inference_mode()
        def predict() -> Tensor:
            return torch.cat([model(images) for images in rows["test"][0].split(128)])

        return predict

    return measured(task, train)


def hqde(task: Task, seed: int, *, precision: str = "fp32", backend: str = "local") -> dict[str, float]:
    """HQDE: an engine with a validation split, independent members."""

    from hqde.backends import make_backend
    from hqde.compiling import compiled
    from hqde.data import Splits, TensorExamples, infer_schema
    from hqde.models import model_spec
    from hqde.rounds import Engine, Experiment
    from hqde.topology import Topology
    from hqde.training import Diversity, Recipe

    def train() -> Callable[[], Tensor]:
        rows = {name: TensorExamples(*task[name]) for name in ("train", "validation", "test")}
        schema = infer_schema(rows["train"], task="classification")
        options = {} if task["model"] == "cnn" else {"hidden": task["hidden"]}
        shape = schema.input_shape
        experiment = Experiment(
            splits=Splits("peers", schema, rows["train"], rows["validation"], rows["test"]),
            model=model_spec(task["model"], input_shape=shape, num_outputs=10, options=options),
            num_workers=task["members"],
            epochs=task["epochs"],
            recipe=Recipe(
                batch_size=task["batch"],
                learning_rate=task["rate"],
                precision=precision,  # type: ignore[arg-type]
            ),
            topology=Topology.independent(),
            diversity=Diversity(learning_rate_spread=0.0, dropout_spread=0.0),
            calibrate=False,
            seed=seed,
        )
        ensemble = Engine(experiment, make_backend(backend)).run().ensemble
        fast = ensemble.for_inference("fp32" if precision == "fp32" else "bf16")
        return lambda: fast.predict_proba(rows["test"])

    return measured(task, train, lambda: compiled()(lambda number: number)(1))  # all of numba


CONTENDERS: dict[str, Callable[[Task, int], dict[str, float]]] = {
    "plain": plain,
    "processes": processes,
    "torchensemble": torchensemble,
    "torchensemble-2": lambda task, seed: torchensemble(task, seed, jobs=2),
    "flower": elsewhere("flower"),
    "ray-train": elsewhere("ray_train"),
    "hqde": hqde,
    "hqde-bf16": lambda task, seed: hqde(task, seed, precision="bf16-mixed"),
    "hqde-vectorised": lambda task, seed: hqde(task, seed, backend="vectorised"),
    "hqde-ray-bf16": lambda task, seed: hqde(task, seed, precision="bf16-mixed", backend="ray"),
}


def main() -> int:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=list(CONTENDERS))
    parser.add_argument("--task", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    task = torch.load(arguments.task) | {"path": arguments.task}
    try:
        found = CONTENDERS[arguments.contender](task, arguments.seed)
    except ImportError as error:
        missing = " ".join(str(error).split()).rstrip(".")
        print(f"{missing}: {sys.executable} lacks what docs/benchmarks.md says to install", file=sys.stderr)
        return 2
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
