"""One contender of `peers.py`: trains the members once, in a process of its own, and says what it took.

    python benchmarks/peer_runs.py plain --task TASK.pt --seed 0

The last line of the output is JSON. Everything between raw rows in memory and trained members counts as
training: normalisation, batches, a look at the validation rows after every epoch, synchronisation. The parent
wrote the rows and the settings to TASK.pt.
"""

from __future__ import annotations

import argparse
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
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Task = dict[str, Any]


def build(task: Task) -> nn.Module:
    """One member, from HQDE's own reference networks."""
    from hqde.models import CNN, MLP

    shape = tuple(task["train"][0].shape[1:])
    return CNN(shape, 10) if task["model"] == "cnn" else MLP(shape, 10, hidden=task["hidden"])


def prepared(task: Task) -> dict[str, tuple[Tensor, Tensor]]:
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


def train_member(task: Task, rows: dict[str, tuple[Tensor, Tensor]], seed: int) -> nn.Module:
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


def measured(task: Task, train: Callable[[], Callable[[], Tensor]]) -> dict[str, float]:
    """Seconds and accuracy of a contender.

    Args:
        task: what is trained.
        train: trains, and returns a function that predicts the test rows, ``(n, classes)``.
    """
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds
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


def _processor_s() -> float:
    """Processor time so far, of ended child processes too."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def plain(task: Task, seed: int) -> dict[str, float]:
    """A plain PyTorch loop over the members, with all threads."""

    def train() -> Callable[[], Tensor]:
        rows = prepared(task)
        models = [train_member(task, rows, 1000 * seed + member) for member in range(task["members"])]
        return lambda: torch.stack([probabilities(model, rows["test"][0]) for model in models]).mean(0)

    return measured(task, train)


_ROWS: dict[str, tuple[Tensor, Tensor]] = {}
_TASK: Task = {}


def _prepare_process(path: str) -> None:
    torch.set_num_threads(1)
    _TASK.update(torch.load(path))
    _ROWS.update(prepared(_TASK))


def _in_process(seed: int) -> dict[str, Tensor]:
    return train_member(_TASK, _ROWS, seed).state_dict()


def processes(task: Task, seed: int) -> dict[str, float]:
    """The same loop in a process per core, one thread each; processes start within the time."""

    def train() -> Callable[[], Tensor]:
        context = multiprocessing.get_context("spawn")
        seeds = [1000 * seed + member for member in range(task["members"])]
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(cores, context, _prepare_process, (task["path"],)) as pool:
            states = list(pool.map(_in_process, seeds))
        models = [build(task) for _ in states]
        for model, state in zip(models, states, strict=True):
            model.load_state_dict(state)
        rows = prepared(task)
        return lambda: torch.stack([probabilities(model, rows["test"][0]) for model in models]).mean(0)

    return measured(task, train)


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

    return measured(task, train)


CONTENDERS: dict[str, Callable[[Task, int], dict[str, float]]] = {
    "plain": plain,
    "processes": processes,
    "torchensemble": torchensemble,
    "torchensemble-2": lambda task, seed: torchensemble(task, seed, jobs=2),
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
    print(json.dumps(CONTENDERS[arguments.contender](task, arguments.seed)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
