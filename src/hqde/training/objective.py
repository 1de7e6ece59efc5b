"""Losses: one number per example, so that sums over unequal batches are exact."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hqde.errors import PreconditionError
from hqde.training.recipe import Loss

# Bounds of the predicted log-variance: beyond them exp overflows before the optimizer can react.
LOG_VARIANCE_BOUNDS = (-10.0, 10.0)


def example_losses(outputs: Tensor, targets: Tensor, loss: Loss, *, label_smoothing: float = 0.0) -> Tensor:
    """Training loss of each example, computed in float32.

    Args:
        outputs: ``(n, c)`` logits, ``(n, 1)`` or ``(n,)`` predictions, or ``(n, 2)`` mean and log-variance.
        targets: ``(n,)`` int64 classes, or ``(n,)`` standardised numbers.
        loss: which of the three.
        label_smoothing: only for cross-entropy.

    Returns:
        ``(n,)`` losses in nats (cross-entropy; Gaussian NLL without its constant ½ log 2π) or squared units
        (MSE).

    Example:
        >>> example_losses(torch.zeros(1, 2), torch.tensor([1]), "cross_entropy")
        tensor([0.6931])
    """
    outputs = outputs.float()
    if loss == "cross_entropy":
        return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing)
    if loss == "mse":
        return (outputs.reshape(targets.shape) - targets).square()
    mean, log_variance = outputs.unbind(dim=1)
    log_variance = log_variance.clamp(*LOG_VARIANCE_BOUNDS)
    return 0.5 * (log_variance + (targets - mean).square() * torch.exp(-log_variance))


def check_outputs(outputs: Tensor, *, num_examples: int, loss: Loss, num_classes: int) -> None:
    """Refuse a model whose output does not fit the task.

    Raises:
        PreconditionError: the sentence gives the shape found and the shape needed.
    """
    found = tuple(outputs.shape)
    if loss == "cross_entropy":
        if outputs.ndim != 2 or found[0] != num_examples or found[1] != num_classes:
            raise PreconditionError(
                f"the model returns {found} for {num_examples} examples of {num_classes} classes; it must "
                f"return logits of shape ({num_examples}, {num_classes}), so set its number of outputs to "
                f"{num_classes}"
            )
    else:
        width = 1 if loss == "mse" else 2
        allowed = [(num_examples, width)] + ([(num_examples,)] if width == 1 else [])
        if found not in allowed:
            raise PreconditionError(
                f"the model returns {found} for {num_examples} examples; loss '{loss}' needs "
                f"({num_examples}, {width})"
            )
