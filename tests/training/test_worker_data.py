"""Dict and tuple batches, regression, and the check before a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hqde.data import TensorExamples
from hqde.errors import PreconditionError
from hqde.models import model_spec
from hqde.training import Schedule, Worker
from hqde.weights import Weights


class Output:
    """What a Hugging Face model returns: a loss nobody asked for, and logits."""

    def __init__(self, logits: Tensor) -> None:
        self.loss, self.logits = None, logits


class Tagger(nn.Module):
    """Mean of token embeddings under a mask, then a linear head; ``model(input_ids=…, attention_mask=…)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        mask = attention_mask.unsqueeze(-1).float()
        return Output(self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1)))


def train_epochs(desk, worker: Worker, commit, epochs: int, *, start: Weights | None = None):
    start, losses = start or desk.start(), []
    for round_index in range(1, epochs + 1):
        update = worker.train_round(
            desk.order(round_index, start=start, progress=((round_index - 1) / epochs, round_index / epochs))
        )
        start = commit(start, update)
        losses.append(update.loss)
    return start, losses


def test_dict_batches_train_a_model_with_logits(desk_of, commit):
    draws = torch.Generator().manual_seed(1)
    targets = torch.arange(40) % 2
    # the label decides which half of the vocabulary the tokens come from
    ids = torch.randint(0, 10, (40, 6), generator=draws) + 10 * targets.unsqueeze(1)
    mask = torch.ones(40, 6, dtype=torch.int64)
    mask[::3, 4:] = 0
    examples = TensorExamples({"input_ids": ids, "attention_mask": mask}, targets)
    desk = desk_of(examples, Tagger)
    worker = desk.worker(batch_size=8, learning_rate=0.02)
    worker.check(torch.arange(4))
    _, losses = train_epochs(desk, worker, commit, 6)
    assert losses[0] > 0.4
    assert losses[-1] < 0.1


def test_tuple_batches_train_a_model_of_two_inputs(desk_of, commit):
    draws = torch.Generator().manual_seed(2)
    left, right = torch.randn(60, 3, generator=draws), torch.randn(60, 3, generator=draws)
    examples = TensorExamples((left, right), ((left * right).sum(1) > 0).long())
    desk = desk_of(examples, nn.Bilinear, options={"in1_features": 3, "in2_features": 3, "out_features": 2})
    worker = desk.worker(batch_size=12, learning_rate=0.1)
    _, losses = train_epochs(desk, worker, commit, 10)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("loss", ["mse", "gaussian_nll"])
def test_regression_learns_a_linear_function(desk_of, commit, loss):
    draws = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 3, generator=draws)
    noise = 0.5 * torch.randn(200, generator=draws)
    targets = inputs @ torch.tensor([3.0, -2.0, 0.0]) + 5.0 + noise
    desk = desk_of(
        TensorExamples(inputs, targets), options={"hidden": []}, num_outputs=1 if loss == "mse" else 2
    )
    worker = desk.worker(
        loss=loss, batch_size=40, learning_rate=0.15, weight_decay=0.0, schedule=Schedule(warmup=0.1)
    )
    last, losses = train_epochs(desk, worker, commit, 30)
    model = desk.model.build()
    worker.layout.write(last, model)
    scale = worker.spec.target_scale
    outputs = model(desk.normalization.apply(inputs)).detach()
    means = scale.invert(outputs[:, 0])
    design = torch.cat([inputs, torch.ones(200, 1)], dim=1)
    best = design @ torch.linalg.lstsq(design, targets.unsqueeze(1)).solution.squeeze(1)
    assert float((means - best).square().mean().sqrt()) < 0.05
    assert losses[-1] < losses[0]
    if loss == "gaussian_nll":
        deviations = scale.invert_variance(outputs[:, 1].exp()).sqrt()
        residual = float((targets - best).square().mean().sqrt())
        assert float(deviations.mean()) == pytest.approx(residual, rel=0.1)
        assert 0.4 < residual < 0.6


def test_regression_reports_no_accuracy(desk_of):
    examples = TensorExamples(torch.randn(10, 2), torch.randn(10))
    desk = desk_of(examples, options={"hidden": []})
    update = desk.worker(batch_size=5).train_round(desk.order())
    assert update.accuracy is None
    assert math.isfinite(update.loss)


@pytest.mark.parametrize(("columns", "fits"), [(3, True), (2, False), (4, False)])
def test_the_check_before_a_run_sees_outputs_that_do_not_fit(linear, columns, fits):
    linear.model = model_spec(
        nn.Linear, input_shape=(4,), num_outputs=3, options={"in_features": 4, "out_features": columns}
    )
    worker = linear.worker()
    if fits:
        worker.check(torch.arange(4))
        return
    with pytest.raises(PreconditionError, match=rf"returns \(4, {columns}\) for 4 examples of 3 classes"):
        worker.check(torch.arange(4))


def test_the_check_changes_nothing(tabular, same):
    checked, plain = tabular.worker(batch_size=12), tabular.worker(batch_size=12)
    checked.check(torch.arange(4))
    assert same(checked.train_round(tabular.order()), plain.train_round(tabular.order()))
