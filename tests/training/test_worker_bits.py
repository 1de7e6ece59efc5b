"""The same orders give the same bits, before and after a restart, and leave the caller's streams alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from hqde.data import Augmentation
from hqde.models import model_spec
from hqde.training import Worker, WorkerState

VARIANTS = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.01},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0},
    "bf16": {"precision": "bf16-mixed"},
    "fp16": {"precision": "fp16-mixed", "optimizer": "sgd", "learning_rate": 0.05},
    "no clipping": {"clip_norm": 0.0, "label_smoothing": 0.1},
}
BATCH = 10


def run(desk, worker: Worker, rounds, commit, *, start=None, keep_buffers=False):
    """Train the rounds one after the other, committing each; the updates and the last weights."""
    start, updates = start or desk.start(), []
    for round_index in rounds:
        update = worker.train_round(
            desk.order(round_index, start=start, keep_buffers=keep_buffers and round_index > 1)
        )
        updates.append(update)
        start = commit(start, update)
    return updates, start


def stored(state: WorkerState) -> WorkerState:
    """The state after a trip through safetensors, as a checkpoint makes it."""
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return WorkerState(load(save(tensors)), state.efficiency)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_orders_give_the_same_bits(tabular, commit, same, variant):
    settings = VARIANTS[variant] | {"batch_size": BATCH}
    first, _ = run(tabular, tabular.worker(**settings), (1, 2), commit)
    torch.rand(17)  # whatever the caller does in between
    again, _ = run(tabular, tabular.worker(**settings), (1, 2), commit)
    assert all(same(one, other) for one, other in zip(first, again, strict=True))
    assert float(first[1].delta.abs().max()) > 0


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_worker_put_back_goes_on_with_the_same_bits(tabular, commit, same, variant, after):
    settings = VARIANTS[variant] | {"batch_size": BATCH}
    whole, _ = run(tabular, tabular.worker(**settings), (1, 2, 3), commit)
    before = tabular.worker(**settings)
    _, start = run(tabular, before, range(1, after + 1), commit)
    state = stored(before.state())
    run(tabular, before, (9,), commit, start=start)  # going on must not change the state handed out
    restored = tabular.worker(**settings)
    restored.load_state(state, start)
    rest, _ = run(tabular, restored, range(after + 1, 4), commit, start=start)
    assert all(same(one, other) for one, other in zip(rest, whole[after:], strict=True))


@pytest.mark.parametrize("keep_buffers", [False, True])
def test_pictures_augmented_and_in_channels_last_order_go_on_with_the_same_bits(
    images, commit, same, keep_buffers
):
    settings = {
        "batch_size": 8,
        "channels_last": True,
        "augmentation": Augmentation(crop_padding=1, flip=True, cutout=2),
    }
    whole, _ = run(images, images.worker(**settings), (1, 2, 3), commit, keep_buffers=keep_buffers)
    before = images.worker(**settings)
    _, start = run(images, before, (1, 2), commit, keep_buffers=keep_buffers)
    restored = images.worker(**settings)
    restored.load_state(stored(before.state()), start)
    rest, _ = run(images, restored, (3,), commit, start=start, keep_buffers=keep_buffers)
    assert same(rest[0], whole[2])


@pytest.mark.parametrize("variant", ["adamw", "sgd"])
def test_without_its_state_a_worker_would_go_on_differently(tabular, commit, same, variant):
    settings = VARIANTS[variant] | {"batch_size": BATCH}
    whole, _ = run(tabular, tabular.worker(**settings), (1, 2), commit)
    _, start = run(tabular, tabular.worker(**settings), (1,), commit)
    rest, _ = run(tabular, tabular.worker(**settings), (2,), commit, start=start)
    assert not same(rest[0], whole[1])


def test_a_worker_s_own_buffers_are_part_of_its_state(tabular, commit):
    before = tabular.worker(batch_size=BATCH)
    _, start = run(tabular, before, (1,), commit)
    elsewhere = tabular.start()  # as if the group's average differed from this worker's statistics
    restored = tabular.worker(batch_size=BATCH)
    restored.load_state(before.state(), elsewhere)
    cut = restored.layout.num_parameters
    assert torch.equal(restored.state().tensors["buffers"], start.vector[cut:])
    assert not torch.equal(start.vector[cut:], elsewhere.vector[cut:])
    assert torch.equal(restored.state().tensors["integers"], start.integers)


def test_the_loss_scale_is_part_of_the_state(tabular):
    settings = {"batch_size": BATCH, "precision": "fp16-mixed"}
    state = tabular.worker(**settings).state()
    state.tensors["scaler"] = torch.tensor([1024.0, 7.0], dtype=torch.float64)
    restored = tabular.worker(**settings)
    restored.load_state(state, tabular.start())
    assert restored.state().tensors["scaler"].tolist() == [1024.0, 7.0]
    restored.train_round(tabular.order())
    assert restored.state().tensors["scaler"].tolist() == [1024.0, 7.0 + 3]  # three good steps


def test_fp16_skips_a_step_that_overflows_and_halves_its_scale(tabular):
    worker = tabular.worker(batch_size=24, precision="fp16-mixed")
    state = worker.state()
    state.tensors["scaler"] = torch.tensor([2.0**60, 0.0], dtype=torch.float64)
    worker.load_state(state, tabular.start())
    update = worker.train_round(tabular.order())
    assert torch.equal(
        update.delta[: worker.layout.num_parameters], torch.zeros(worker.layout.num_parameters)
    )
    assert worker.state().tensors["scaler"].tolist() == [2.0**59, 0.0]


def streams() -> tuple[object, ...]:
    numbers = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numbers[1].tolist(), numbers[2:], random.getstate()


def test_the_caller_s_random_streams_are_left_alone(images):
    torch.manual_seed(3)
    before = streams()
    worker = images.worker(batch_size=8, augmentation=Augmentation(flip=True))
    worker.check(torch.arange(4))
    worker.train_round(images.order())
    worker.load_state(worker.state(), images.start())
    assert streams() == before


def test_a_model_that_raises_leaves_the_caller_s_random_streams_alone(desk_of, tabular):
    class Broken(nn.Linear):
        def forward(self, inputs):
            torch.rand(3)
            raise RuntimeError("no")

    tabular.model = model_spec(lambda: Broken(4, 3), input_shape=(4,), num_outputs=3)
    worker, before = tabular.worker(), streams()
    with pytest.raises(RuntimeError, match="no"):
        worker.train_round(tabular.order())
    assert streams() == before


# -- what differs between workers and rounds ---------------------------------------------------------------


class Spy(nn.Module):
    """Passes its input through a dropout of ones first, and keeps both for the test to look at."""

    seen: list[tuple[torch.Tensor, torch.Tensor]]

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)
        self.drop = nn.Dropout(0.5)
        self.seen = []

    def forward(self, inputs):
        mask = self.drop(torch.ones(32))
        self.seen.append((inputs.detach().clone(), mask))
        return self.head(inputs.flatten(1))


@pytest.fixture
def spied(images):
    """A way to see the inputs and dropout masks of one round."""
    images.model = model_spec(Spy, input_shape=(1, 8, 8), num_outputs=2)

    def look(worker_id: int, round_index: int, *, seed: int = 0, augmentation=Augmentation(), **changes):
        worker = images.worker(worker_id, seed=seed, batch_size=5, augmentation=augmentation)
        worker.train_round(images.order(round_index, worker_id=worker_id, **changes))
        inputs, masks = zip(*worker.model.seen, strict=True)
        return torch.cat(inputs), torch.stack(masks)

    return look


@pytest.mark.parametrize("other", [(1, 1, 0), (0, 2, 0), (0, 1, 1)], ids=["worker", "round", "seed"])
def test_data_order_and_dropout_differ_between_workers_rounds_and_seeds(spied, other):
    worker_id, round_index, seed = other
    inputs, masks = spied(0, 1)
    other_inputs, other_masks = spied(worker_id, round_index, seed=seed)
    assert not torch.equal(inputs, other_inputs)
    assert not torch.equal(masks, other_masks)
    # the same pictures all the same, each once
    assert torch.equal(inputs.flatten(1).sum(1).sort().values, other_inputs.flatten(1).sum(1).sort().values)


def test_each_step_draws_its_own_dropout_mask(spied):
    _, masks = spied(0, 1)
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks) == 4


def test_the_rounds_of_one_epoch_share_its_data_order(spied):
    first, _ = spied(0, 1, epoch=1)
    second, _ = spied(0, 2, epoch=1)
    assert torch.equal(first, second)


@pytest.mark.parametrize("other", [(1, 1, 0), (0, 2, 0), (0, 1, 1)], ids=["worker", "round", "seed"])
def test_augmentation_differs_between_workers_rounds_and_seeds(spied, other):
    def look(worker_id: int, round_index: int, seed: int, augmentation: Augmentation) -> torch.Tensor:
        # one picture over and over, so that the data order makes no difference
        same_picture = torch.zeros(20, dtype=torch.int64)
        inputs, _ = spied(worker_id, round_index, seed=seed, shard=same_picture, augmentation=augmentation)
        return inputs

    changing = Augmentation(crop_padding=2, flip=True)
    assert torch.equal(look(0, 1, 0, Augmentation()), look(*other, Augmentation()))
    first = look(0, 1, 0, changing)
    assert len({tuple(picture.flatten().tolist()) for picture in first}) > 10
    assert torch.equal(first, look(0, 1, 0, changing))
    assert not torch.equal(first, look(*other, changing))
