"""What members predict: raw inputs in, class probabilities or normal distributions out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hqde.data import Inputs, Normalization, Schema, TargetScale, move_inputs, num_rows
from hqde.ensemble.inputs import check_finite, check_inputs
from hqde.ensemble.members import Member, evaluating
from hqde.errors import ConfigError, NonFiniteError, PreconditionError, did_you_mean
from hqde.finite import has_finite_sum
from hqde.models import call_model

Loss: TypeAlias = Literal["cross_entropy", "mse", "gaussian_nll"]
"""What a model's outputs mean: logits, a mean, or a mean and a log-variance."""

LOSSES: tuple[Loss, ...] = ("cross_entropy", "mse", "gaussian_nll")

NUMBERS_AT_ONCE = 64 * 3 * 32 * 32
"""Of the images that a model on a CPU gets at once, but at least 64 of them."""

QUICK_S, PROBED_ROWS = 4e-3, 16
"""A member is quick that is not seen to need longer for a batch, by so many of its rows."""

LOG_VARIANCE_BOUNDS = (-10.0, 10.0)
"""Log-variances of standardised targets are read within these bounds, as in training."""


def predict_members(
    members: Sequence[Member],
    batches: Iterable[Inputs],
    *,
    schema: Schema,
    normalization: Normalization,
    target_scale: TargetScale,
    loss: Loss,
    device: torch.device,
    pool: Executor | None = None,
) -> Tensor:
    """Every member's prediction for every row; each batch is read and normalised once.

    Args:
        members: m of them, all on ``device``.
        batches: raw inputs, rows first.
        schema, normalization, target_scale, loss: what the members were trained with.
        device: where the members are.
        pool: threads in which the members predict each batch, side by side if that takes long, to the same
            bits for as many torch threads; left out, one after the other in this thread.

    Returns:
        (m, n, c) float32 on the CPU: probabilities, or for regression (m, n, 2) mean and variance in the
        units of the targets.

    Raises:
        PreconditionError: inputs or outputs have another shape than expected.
        NonFiniteError: an input, or a member's output, is NaN or infinite.
    """
    parts: list[list[Tensor]] = [[] for _ in members]
    first_row = 0
    with torch.inference_mode():
        for inputs in batches:
            check_inputs(inputs, schema)
            rows = num_rows(inputs)
            if rows == 0:
                continue
            ready = normalization.apply(inputs)
            check_finite(ready, first_row=first_row)
            ready = move_inputs(ready, device)
            if isinstance(ready, Tensor) and ready.ndim == 4:  # convolutions are two to three times faster
                ready = ready.contiguous(memory_format=torch.channels_last)

            def predict(member: Member, ready: Inputs = ready) -> Tensor:
                with torch.inference_mode():  # is a thread's own
                    model, outputs = evaluating(member.model), []
                    for part in _parts(ready):
                        outputs.append(call_model(model, part))
                        rows = num_rows(part)
                        check_outputs(outputs[-1], member=member, rows=rows, schema=schema, loss=loss)
                    return interpret_outputs(torch.cat(outputs), loss=loss, target_scale=target_scale)

            if pool is None:
                found = [predict(member) for member in members]
            elif pool.submit(_seconds, predict, members[0], ready).result() < QUICK_S:
                # In more threads than one they would wait for each other's Python.
                found = pool.submit(lambda: [predict(member) for member in members]).result()
            else:
                found = list(pool.map(predict, members))
            for member, part, rows_found in zip(members, parts, found, strict=True):
                _check_prediction(rows_found, member, first_row)
                part.append(rows_found.cpu())
            first_row += rows
        width = schema.num_classes if schema.task == "classification" else 2
        empty = torch.zeros(0, width)
        stacked = torch.stack([torch.cat(part) if part else empty for part in parts])
    return stacked.clone()  # outside inference mode: an ordinary tensor, which autograd code may use


def _seconds(predict: Callable[[Member, Inputs], Tensor], member: Member, ready: Inputs) -> float:
    """About how long a member takes for these rows, by a few of them."""
    rows, few = num_rows(ready), tree_map(lambda value: value[:PROBED_ROWS], ready)
    took = []
    for _ in range(2):  # the first call does more
        began = time.perf_counter()
        predict(member, few)
        took.append(time.perf_counter() - began)
    return min(took) * max(1.0, rows / PROBED_ROWS)


def _parts(inputs: Inputs) -> tuple[Inputs, ...]:
    """The rows a model gets at once: of images on a CPU few, so that a layer's output fits into its cache."""
    if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.device.type == "cpu":
        return inputs.split(max(64, NUMBERS_AT_ONCE // max(1, inputs[0].numel())))
    return (inputs,)


def interpret_outputs(outputs: Tensor, *, loss: Loss, target_scale: TargetScale) -> Tensor:
    """A model's outputs as a prediction, in float32.

    ``cross_entropy``: ``softmax`` of the logits. ``mse``: the mean in target units, with variance 0.
    ``gaussian_nll``: ``mean = a + b z``, ``variance = b² exp(log-variance)``, for the target scale ``a, b``.

    Args:
        outputs: (n, c) logits, (n, 1) or (n,) means, or (n, 2) means and log-variances.
        loss: which of these.
        target_scale: undoes the standardisation of the targets.

    Returns:
        (n, c) probabilities, or (n, 2) mean and variance.

    >>> interpret_outputs(torch.tensor([[1.0, 0.0]]), loss="gaussian_nll", target_scale=TargetScale(5.0, 2.0))
    tensor([[7., 4.]])
    """
    outputs = outputs.float()
    if loss == "cross_entropy":
        return torch.softmax(outputs, dim=1)
    if loss == "mse":
        mean = target_scale.invert(outputs.reshape(-1))
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)
    mean, log_variance = outputs.unbind(dim=1)
    variance = torch.exp(log_variance.clamp(*LOG_VARIANCE_BOUNDS))
    return torch.stack([target_scale.invert(mean), target_scale.invert_variance(variance)], dim=1)


def choose_loss(loss: Loss | None, schema: Schema) -> Loss:
    """``loss``, or the first that fits the task if it is None.

    Raises:
        ConfigError: it does not fit the task.
    """
    fitting = tuple(
        known for known in LOSSES if (known == "cross_entropy") == (schema.task == "classification")
    )
    if loss is None:
        return fitting[0]
    if loss not in fitting:
        raise ConfigError(f"loss {loss!r} does not fit {schema.task}: {did_you_mean(str(loss), fitting)}")
    return loss


def check_outputs(outputs: Tensor, *, member: Member, rows: int, schema: Schema, loss: Loss) -> None:
    """Refuse outputs whose shape does not fit the task.

    Raises:
        PreconditionError: with the shape found and the shape expected.
    """
    width = {"cross_entropy": schema.num_classes, "mse": 1, "gaussian_nll": 2}[loss]
    found = tuple(outputs.shape)
    if found != (rows, width) and not (loss == "mse" and found == (rows,)):
        raise PreconditionError(
            f"member {member.member_id} returns shape {found}, expected {(rows, width)} for loss {loss!r}: "
            "give it a model with that many outputs."
        )


def _check_prediction(found: Tensor, member: Member, first_row: int) -> None:
    if has_finite_sum(found):
        return
    bad = ~torch.isfinite(found).all(dim=1)
    if bool(bad.any()):
        row = first_row + int(bad.nonzero()[0])
        raise NonFiniteError(
            f"member {member.member_id} predicts NaN or infinity in {int(bad.sum())} rows (first: {row}): "
            "leave the member out or retrain it."
        )
