"""What the update says of a round, and what becomes of buffers and optimizers between rounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hqde.data import Normalization
from hqde.models import model_spec
from hqde.training import Worker, epoch_batches
from hqde.weights import Weights

FROZEN = {"optimizer": "sgd", "learning_rate": 1e-30}  # so small that no float32 weight moves


def split(desk, weights: Weights) -> tuple[Tensor, Tensor]:
    """Weight (3, 4) and bias (3,) of the linear model."""
    assert weights.vector.shape == (15,)
    return weights.vector[:12].view(3, 4).double(), weights.vector[12:].double()


def test_the_update_reports_the_means_over_its_examples_and_the_seed_s_efficiency(linear):
    worker = linear.worker(batch_size=7, weight_decay=0.0, **FROZEN)
    steps: list[tuple[int, int]] = []
    update = worker.train_round(linear.order(), on_step=lambda done, total: steps.append((done, total)))
    weight, bias = split(linear, linear.start())
    scores = linear.normalization.apply(linear.examples.inputs).double() @ weight.T + bias
    losses = -scores.log_softmax(1)[torch.arange(24), linear.examples.targets]
    assert update.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert update.accuracy == float((scores.argmax(1) == linear.examples.targets).double().mean())
    assert update.num_samples == 24
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(update.delta, torch.zeros(15))
    score = 1.0
    for batch in epoch_batches(linear.order(), seed=0, batch_size=7):  # of 7, 7, 7 and 3 rows
        loss = float(losses[batch].mean())
        score = max(0.1, score * 0.99 + 0.01 * (1.0 / (1.0 + loss)))
    assert update.efficiency == pytest.approx(score, rel=1e-7)
    assert (update.worker_id, update.round_index, update.attempt) == (0, 1, 0)
    assert update.seconds > 0


def test_the_update_carries_the_order_s_tags_and_never_changes_the_order(linear):
    order = linear.order(7, attempt=3)
    kept = order.start.clone()
    update = linear.worker(batch_size=6).train_round(order)
    assert (update.round_index, update.attempt) == (7, 3)
    assert torch.equal(order.start.vector, kept.vector)
    assert torch.equal(order.start.integers, kept.integers)
    assert torch.equal(order.shard, torch.arange(24))


def test_a_round_without_batches_moves_nothing_and_claims_nothing(tabular):
    worker = tabular.worker(batch_size=12)
    before = worker.state()
    update = worker.train_round(tabular.order(first_batch=2, progress=(0.25, 0.5)))
    assert update.num_samples == 0
    assert math.isnan(update.loss)
    assert update.accuracy is None
    assert torch.equal(update.delta, torch.zeros_like(update.delta))
    assert worker.state().efficiency == before.efficiency == 1.0


def test_a_round_that_diverges_reports_it_and_does_not_raise(linear):
    update = linear.worker(optimizer="sgd", learning_rate=1e38, clip_norm=0.0, batch_size=6).train_round(
        linear.order()
    )
    assert not torch.isfinite(update.delta).all()
    assert not math.isfinite(update.loss)
    assert 0.1 <= update.efficiency <= 1.0


def round_of(desk, worker: Worker, round_index: int, **changes):
    return worker.train_round(desk.order(round_index, **changes))


def test_shared_buffers_start_from_the_committed_ones_and_kept_buffers_from_the_worker_s_own(linear):
    """A BatchNorm before anything trained: its mean moves a tenth of the way to the rows' mean each step."""
    linear.model = model_spec(
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), input_shape=(4,), num_outputs=3
    )
    linear.normalization = Normalization.identity()
    rows_mean = linear.examples.inputs.mean(0)
    start = linear.start()  # the committed statistics stay those of a fresh model: mean 0, variance 1
    for keep, share, count in ((False, 0.1, 1), (True, 0.19, 2)):
        worker = linear.worker(batch_size=24)
        cut = worker.layout.num_parameters
        first = round_of(linear, worker, 1, start=start)
        torch.testing.assert_close(first.delta[cut : cut + 4], 0.1 * rows_mean)
        assert first.integers.tolist() == [1]
        second = round_of(linear, worker, 2, start=start, keep_buffers=keep)
        torch.testing.assert_close(second.delta[cut : cut + 4], share * rows_mean)
        assert second.integers.tolist() == [count]
        assert torch.equal(worker.state().tensors["buffers"], start.vector[cut:] + second.delta[cut:])


def test_a_fresh_optimizer_is_that_of_a_new_worker(tabular, same):
    used, new = tabular.worker(batch_size=12), tabular.worker(batch_size=12)
    round_of(tabular, used, 1)
    kept = round_of(tabular, used, 2)
    again = round_of(tabular, used, 2, fresh_optimizer=True)
    expected = round_of(tabular, new, 2)
    assert torch.equal(again.delta, expected.delta)
    assert not torch.equal(kept.delta, expected.delta)


def test_after_a_refused_update_buffers_that_became_nan_are_forgotten_too(tabular):
    worker = tabular.worker(batch_size=12)
    broken = tabular.start()
    broken.vector[worker.layout.num_parameters :] = float("nan")
    assert not torch.isfinite(round_of(tabular, worker, 1, start=broken).delta).all()
    start = tabular.start()
    assert not torch.isfinite(round_of(tabular, worker, 2, start=start, keep_buffers=True).delta).all()
    cured = round_of(tabular, worker, 3, start=start, keep_buffers=True, fresh_optimizer=True)
    assert torch.isfinite(cured.delta).all()
    assert torch.isfinite(round_of(tabular, worker, 4, start=start, keep_buffers=True).delta).all()
