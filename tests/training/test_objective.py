"""Losses of single examples against torch's own losses, closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hqde.errors import PreconditionError
from hqde.training import check_outputs, example_losses
from hqde.training.objective import LOG_VARIANCE_BOUNDS

seeds = st.integers(0, 2**32 - 1)


def draw_logits(seed: int, n: int = 5, c: int = 4) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, c, generator=draws), torch.randint(c, (n,), generator=draws)


@settings(deadline=None)
@given(seed=seeds, smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_cross_entropy_is_the_closed_form_example_by_example(seed, smoothing):
    logits, targets = draw_logits(seed)
    found = example_losses(logits, targets, "cross_entropy", label_smoothing=smoothing)
    for row, target, loss in zip(logits.tolist(), targets.tolist(), found.tolist(), strict=True):
        log_total = math.log(math.fsum(math.exp(value) for value in row))
        log_probs = [value - log_total for value in row]
        expected = -(1 - smoothing) * log_probs[target] - smoothing * sum(log_probs) / len(row)
        assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)


@settings(deadline=None)
@given(seed=seeds, smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_the_mean_of_cross_entropies_is_torch_s_own_loss(seed, smoothing):
    logits, targets = draw_logits(seed)
    found = example_losses(logits, targets, "cross_entropy", label_smoothing=smoothing).mean()
    torch.testing.assert_close(found, nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, targets))


@settings(deadline=None)
@given(seed=seeds)
def test_mse_is_torch_s_own_for_both_shapes_of_output(seed):
    draws = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(6, 1, generator=draws), torch.randn(6, generator=draws)
    for shaped in (outputs, outputs.squeeze(1)):
        found = example_losses(shaped, targets, "mse")
        assert found.shape == (6,)
        torch.testing.assert_close(found.mean(), nn.MSELoss()(outputs.squeeze(1), targets))


@settings(deadline=None)
@given(seed=seeds)
def test_gaussian_likelihood_is_torch_s_own_and_the_normal_density(seed):
    draws = torch.Generator().manual_seed(seed)
    outputs, targets = 2 * torch.randn(6, 2, generator=draws), torch.randn(6, generator=draws)
    found = example_losses(outputs, targets, "gaussian_nll")
    mean, variance = outputs[:, 0], outputs[:, 1].exp()
    torch.testing.assert_close(found.mean(), nn.GaussianNLLLoss(eps=0.0)(mean, targets, variance))
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(targets)
    torch.testing.assert_close(found, -density - 0.5 * math.log(2 * math.pi))


def test_numbers_by_hand():
    even = example_losses(torch.zeros(1, 4), torch.tensor([2]), "cross_entropy")
    assert even.item() == pytest.approx(math.log(4))
    assert example_losses(torch.tensor([[3.0]]), torch.tensor([1.0]), "mse").item() == 4.0
    outputs = torch.tensor([[1.0, math.log(4.0)]])  # mean 1, variance 4: ½ (log 4 + (3 - 1)² / 4)
    found = example_losses(outputs, torch.tensor([3.0]), "gaussian_nll")
    assert found.item() == pytest.approx(0.5 * (math.log(4.0) + 1.0))


@pytest.mark.parametrize("log_variance", [-1e4, 1e4])
def test_a_wild_log_variance_is_bounded_so_that_loss_and_gradient_stay_finite(log_variance):
    outputs = torch.tensor([[0.0, log_variance]], requires_grad=True)
    loss = example_losses(outputs, torch.tensor([1.0]), "gaussian_nll")
    bound = LOG_VARIANCE_BOUNDS[log_variance > 0]
    assert loss.item() == pytest.approx(0.5 * (bound + math.exp(-bound)))
    loss.sum().backward()
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_computed_in_float32(dtype):
    logits = torch.tensor([[60000.0 if dtype == torch.float16 else 1e30, 0.0]], dtype=dtype)
    found = example_losses(logits, torch.tensor([1]), "cross_entropy")
    assert found.dtype == torch.float32
    assert found.item() == float(logits[0, 0])


@settings(deadline=None)
@given(seed=seeds)
def test_nothing_that_is_given_is_changed(seed):
    logits, targets = draw_logits(seed)
    kept = logits.clone(), targets.clone()
    example_losses(logits, targets, "cross_entropy", label_smoothing=0.1)
    assert torch.equal(logits, kept[0])
    assert torch.equal(targets, kept[1])


@pytest.mark.parametrize(
    ("shape", "loss"),
    [((5, 3), "cross_entropy"), ((5, 1), "mse"), ((5,), "mse"), ((5, 2), "gaussian_nll")],
)
def test_outputs_that_fit_are_accepted(shape, loss):
    check_outputs(torch.zeros(shape), num_examples=5, loss=loss, num_classes=3)


@pytest.mark.parametrize(
    ("shape", "loss", "sentence"),
    [
        ((5, 4), "cross_entropy", r"returns \(5, 4\) for 5 examples of 3 classes; .* outputs to 3"),
        ((4, 3), "cross_entropy", r"returns \(4, 3\) for 5 examples of 3 classes"),
        ((5,), "cross_entropy", r"logits of shape \(5, 3\)"),
        ((5, 3, 1), "cross_entropy", r"logits of shape \(5, 3\)"),
        ((5, 2), "mse", r"returns \(5, 2\) for 5 examples; loss 'mse' needs \(5, 1\)"),
        ((1, 5), "mse", r"loss 'mse' needs \(5, 1\)"),
        ((5,), "gaussian_nll", r"loss 'gaussian_nll' needs \(5, 2\)"),
        ((5, 1), "gaussian_nll", r"loss 'gaussian_nll' needs \(5, 2\)"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_with_both_shapes(shape, loss, sentence):
    with pytest.raises(PreconditionError, match=sentence):
        check_outputs(torch.zeros(shape), num_examples=5, loss=loss, num_classes=3)
