"""A worker's steps, by hand: optimizers, schedule, clipping, precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hqde.errors import PreconditionError
from hqde.models import model_spec
from hqde.training import Schedule, Worker
from hqde.weights import Weights


def record_steps(worker: Worker, look) -> list[object]:
    """What ``look(optimizer)`` returns just before each step of the worker's optimizer."""
    seen: list[object] = []
    worker.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(look(optimizer)))
    return seen


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    gradients = [p.grad.double() for group in optimizer.param_groups for p in group["params"]]
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


def split(desk, weights: Weights) -> tuple[Tensor, Tensor]:
    """Weight (3, 4) and bias (3,) of the linear model."""
    assert weights.vector.shape == (15,)
    return weights.vector[:12].view(3, 4).double(), weights.vector[12:].double()


def hand_gradient(desk, weight: Tensor, bias: Tensor, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Gradient of the mean softmax loss over all rows: (probabilities - labels)ᵀ inputs / n."""
    inputs = desk.normalization.apply(desk.examples.inputs).double()
    labels = torch.zeros(len(inputs), 3, dtype=torch.float64)
    labels[torch.arange(len(inputs)), desk.examples.targets] = 1.0
    labels = (1 - smoothing) * labels + smoothing / 3
    scores = inputs @ weight.T + bias
    probabilities = scores.exp() / scores.exp().sum(1, keepdim=True)
    error = (probabilities - labels) / len(inputs)
    return error.T @ inputs, error.sum(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_two_steps_of_nesterov_momentum_by_hand(linear, smoothing):
    rate, momentum, decay = 0.1, 0.9, 0.05
    worker = linear.worker(
        optimizer="sgd", learning_rate=rate, momentum=momentum, weight_decay=decay,
        clip_norm=0.0, label_smoothing=smoothing, batch_size=24,
    )  # fmt: skip
    first = worker.train_round(linear.order(1))
    start = Weights(linear.start().vector + first.delta, first.integers)
    second = worker.train_round(linear.order(2, start=start))

    weight, bias = split(linear, linear.start())
    weight_buffer, bias_buffer = torch.zeros_like(weight), torch.zeros_like(bias)
    for _ in range(2):
        weight_gradient, bias_gradient = hand_gradient(linear, weight, bias, smoothing=smoothing)
        weight_gradient = weight_gradient + decay * weight  # no decay on the bias
        weight_buffer = momentum * weight_buffer + weight_gradient
        bias_buffer = momentum * bias_buffer + bias_gradient
        weight = weight - rate * (weight_gradient + momentum * weight_buffer)
        bias = bias - rate * (bias_gradient + momentum * bias_buffer)
    found_weight, found_bias = split(linear, Weights(start.vector + second.delta, second.integers))
    torch.testing.assert_close(found_weight, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_bias, bias, rtol=1e-5, atol=1e-6)


def test_two_steps_of_adamw_by_hand(linear):
    rate, decay, beta1, beta2, eps = 0.01, 0.1, 0.9, 0.999, 1e-8
    worker = linear.worker(learning_rate=rate, weight_decay=decay, clip_norm=0.0, batch_size=24)
    first = worker.train_round(linear.order(1))
    start = Weights(linear.start().vector + first.delta, first.integers)
    second = worker.train_round(linear.order(2, start=start))

    values = list(split(linear, linear.start()))
    means, squares = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values]
    for step in (1, 2):
        for i, gradient in enumerate(hand_gradient(linear, *values)):
            if i == 0:
                values[0] = values[0] * (1 - rate * decay)
            means[i] = beta1 * means[i] + (1 - beta1) * gradient
            squares[i] = beta2 * squares[i] + (1 - beta2) * gradient**2
            mean, square = means[i] / (1 - beta1**step), squares[i] / (1 - beta2**step)
            values[i] = values[i] - rate * mean / (square.sqrt() + eps)
    found = split(linear, Weights(start.vector + second.delta, second.integers))
    torch.testing.assert_close(found[0], values[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], values[1], rtol=1e-4, atol=1e-5)


def test_the_schedule_reaches_the_optimizer_at_the_middle_of_each_step(linear):
    schedule = Schedule(warmup=0.5)
    worker = linear.worker(schedule=schedule, learning_rate=0.04, batch_size=6)
    seen = record_steps(worker, rates)
    update = worker.train_round(linear.order(progress=(0.0, 1.0)))
    # four steps of 24 rows, their middles at 1/8, 3/8, 5/8 and 7/8 of the run
    expected = [
        0.01,
        0.03,
        0.04 * 0.5 * (1 + math.cos(math.pi / 4)),
        0.04 * 0.5 * (1 + math.cos(3 * math.pi / 4)),
    ]
    assert [group[0] for group in seen] == pytest.approx(expected)
    assert all(len(set(group)) == 1 for group in seen)
    assert update.learning_rate == seen[-1][0]


def test_no_step_before_a_restart_has_the_rate_after_it(linear):
    schedule = Schedule(warmup=0.0, restart_at=0.5, restart_level=1.0)
    worker = linear.worker(schedule=schedule, learning_rate=1.0, batch_size=6)
    seen = record_steps(worker, rates)
    worker.train_round(linear.order(progress=(0.0, 0.5)))
    descending = [group[0] for group in seen]
    assert descending == sorted(descending, reverse=True)
    assert descending[-1] < 0.6


@pytest.mark.parametrize("clip_norm", [0.5, 0.01])
def test_clipping_bounds_the_gradient_of_every_step(linear, clip_norm):
    worker = linear.worker(clip_norm=clip_norm, batch_size=6)
    clipped = record_steps(worker, gradient_norm)
    worker.train_round(linear.order())
    free = linear.worker(clip_norm=0.0, batch_size=6)
    unclipped = record_steps(free, gradient_norm)
    free.train_round(linear.order())
    assert len(clipped) == len(unclipped) == 4
    assert max(clipped) <= clip_norm * (1 + 1e-5)
    assert max(unclipped) > clip_norm


def test_clipping_keeps_a_small_gradient_as_it_is(linear, same):
    loose, off = linear.worker(clip_norm=1e6, batch_size=6), linear.worker(clip_norm=0.0, batch_size=6)
    assert same(loose.train_round(linear.order()), off.train_round(linear.order()))


def test_fp16_clips_the_true_gradient_not_the_scaled_one(linear):
    worker = linear.worker(clip_norm=0.01, batch_size=6, precision="fp16-mixed")
    seen = record_steps(worker, gradient_norm)
    worker.train_round(linear.order())
    assert [norm == pytest.approx(0.01, rel=1e-3) for norm in seen] == [True] * 4


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed"])
def test_mixed_precision_trains_like_full_precision_to_its_own_tolerance(linear, precision):
    full = linear.worker(batch_size=6, optimizer="sgd", learning_rate=0.1).train_round(linear.order())
    mixed = linear.worker(
        batch_size=6, optimizer="sgd", learning_rate=0.1, precision=precision
    ).train_round(linear.order())  # fmt: skip
    assert mixed.loss == pytest.approx(full.loss, rel=0.02)
    assert mixed.loss != full.loss
    assert float((mixed.delta - full.delta).norm() / full.delta.norm()) < 0.05


def test_channels_last_gives_the_same_loss_to_rounding(images):
    images_settings = {"batch_size": 10, "optimizer": "sgd", "learning_rate": 0.05, "dropout_rate": 0.0}
    plain = images.worker(**images_settings)
    other = images.worker(**images_settings, channels_last=True)
    convolutions = [m for m in other.model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
    assert convolutions
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    one, two = plain.train_round(images.order()), other.train_round(images.order())
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    torch.testing.assert_close(one.delta, two.delta, rtol=1e-3, atol=1e-5)


def test_frozen_parameters_stay_and_the_rest_moves(linear):
    def half_frozen() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        model[0].requires_grad_(False)
        return model

    linear.model = model_spec(half_frozen, input_shape=(4,), num_outputs=3)
    update = linear.worker().train_round(linear.order())
    assert torch.equal(update.delta[:25], torch.zeros(25))
    assert (update.delta[25:] != 0).any()


def test_a_model_that_is_frozen_altogether_is_refused(linear):
    linear.model = model_spec(
        lambda: nn.Linear(4, 3).requires_grad_(False), input_shape=(4,), num_outputs=3
    )  # fmt: skip
    with pytest.raises(PreconditionError, match="all parameters of Linear are frozen"):
        linear.worker()
