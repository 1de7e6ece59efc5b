"""Small data sets, and workers that train on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from hqde.aggregation import Update
from hqde.data import Augmentation, Examples, Normalization, Schema, TargetScale, TensorExamples, infer_schema
from hqde.models import ModelSpec, model_spec
from hqde.seeding import seeded
from hqde.training import Order, Recipe, Schedule, Worker, WorkerSpec
from hqde.weights import Layout, Weights


@dataclass
class Desk:
    """One data set with a way to build workers on it and orders for them.

    Attributes:
        examples, schema: the data.
        model: architecture of its workers; its starting weights are drawn from one fixed seed.
    """

    examples: Examples
    schema: Schema
    model: ModelSpec
    normalization: Normalization = field(default_factory=Normalization.identity)

    def worker(
        self,
        worker_id: int = 0,
        *,
        schedule: Schedule = Schedule(kind="constant", warmup=0.0),  # noqa: B008 - frozen
        augmentation: Augmentation = Augmentation(),
        dropout_rate: float | None = None,
        seed: int = 0,
        **recipe,
    ) -> Worker:
        spec = WorkerSpec(
            worker_id=worker_id,
            model=self.model,
            dropout_rate=dropout_rate,
            recipe=Recipe(**recipe),
            schedule=schedule,
            schema=self.schema,
            normalization=self.normalization,
            target_scale=TargetScale.fit(self.examples.targets),
            augmentation=augmentation,
            seed=seed,
        )
        return Worker(spec, self.examples)

    def start(self) -> Weights:
        with seeded(123, "start"):
            model = self.model.build()
        return Layout.of(model).read(model)

    def order(self, round_index: int = 1, **changes) -> Order:
        usual = Order(
            worker_id=0,
            round_index=round_index,
            attempt=0,
            epoch=round_index,
            start=self.start(),
            keep_buffers=False,
            fresh_optimizer=False,
            shard=torch.arange(len(self.examples)),
            first_batch=0,
            num_batches=None,
            progress=((round_index - 1) / 10, round_index / 10),
        )
        return replace(usual, **changes)


def committed(start: Weights, update: Update) -> Weights:
    """FedAvg of a group of one."""
    return Weights(start.vector + update.delta, update.integers)


def blobs(count: int = 24, *, width: int = 4, classes: int = 3) -> TensorExamples:
    draws = torch.Generator().manual_seed(5)
    targets = torch.arange(count) % classes
    centres = 2 * torch.randn(classes, width, generator=draws)
    return TensorExamples(centres[targets] + torch.randn(count, width, generator=draws), targets)


def pictures(count: int = 20, *, classes: int = 2) -> TensorExamples:
    draws = torch.Generator().manual_seed(6)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=draws, dtype=torch.uint8)
    return TensorExamples(images, torch.arange(count) % classes)


def make_desk(examples: TensorExamples, model="mlp", *, options=None, num_outputs=None, **changes) -> Desk:
    regression = examples.targets.is_floating_point()
    schema = infer_schema(examples, task="regression" if regression else "classification")
    outputs = num_outputs or (1 if regression else schema.num_classes)
    spec = model_spec(model, input_shape=schema.input_shape, num_outputs=outputs, options=options)
    return Desk(examples, schema, spec, Normalization.fit(examples, schema), **changes)


@pytest.fixture
def tabular() -> Desk:
    """24 rows of 3 classes, and an MLP with BatchNorm and dropout."""
    return make_desk(blobs(), options={"hidden": [8], "dropout_rate": 0.3})


@pytest.fixture
def linear() -> Desk:
    """24 rows of 3 classes, and a linear softmax model without anything random."""
    return make_desk(blobs(), options={"hidden": []})


@pytest.fixture
def images() -> Desk:
    """20 pictures of 2 classes, and a CNN with BatchNorm and dropout."""
    return make_desk(pictures(), "cnn", options={"channels": [4, 8], "dropout_rate": 0.3})


@pytest.fixture
def desk_of() -> Callable[..., Desk]:
    return make_desk


@pytest.fixture
def commit() -> Callable[[Weights, Update], Weights]:
    return committed


def same_update(left: Update, right: Update) -> bool:
    """Equal in every field but the wall time, bit for bit."""
    plain = all(
        getattr(left, name) == getattr(right, name)
        for name in (
            "worker_id",
            "round_index",
            "num_samples",
            "loss",
            "accuracy",
            "learning_rate",
            "efficiency",
        )
    )
    tensors: list[tuple[Tensor, Tensor]] = [(left.delta, right.delta), (left.integers, right.integers)]
    return plain and all(torch.equal(one, other) for one, other in tensors)


@pytest.fixture
def same() -> Callable[[Update, Update], bool]:
    return same_update
