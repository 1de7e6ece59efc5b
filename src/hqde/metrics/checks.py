"""What every metric asks of its arguments before it computes anything."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hqde.errors import NonFiniteError, PreconditionError
from hqde.finite import has_finite_sum

# Rows of probabilities must sum to 1 within this; logits passed by mistake are off by far more.
SUM_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 2e-2}
CHUNK_NUMBERS = 2**22


def check_probs(probs: Tensor, targets: Tensor) -> None:
    """Raise unless ``probs`` is ``(n, c)`` probabilities and ``targets`` ``(n,)`` class ids below ``c``.

    Raises:
        PreconditionError: shapes, kinds or ranges do not fit.
        NonFiniteError: a probability is NaN or infinite.
    """
    _check_probabilities(probs, "probs", "(n, c)", ndim=2)
    _check_targets(targets, num_rows=probs.shape[0], num_classes=probs.shape[1])


def check_member_probs(member_probs: Tensor, targets: Tensor | None = None) -> None:
    """Raise unless ``member_probs`` is ``(m, n, c)`` probabilities, and ``targets``, if given, fit them.

    Raises:
        PreconditionError: shapes, kinds or ranges do not fit.
        NonFiniteError: a probability is NaN or infinite.
    """
    _check_probabilities(member_probs, "member_probs", "(m, n, c)", ndim=3)
    if targets is not None:
        _check_targets(targets, num_rows=member_probs.shape[1], num_classes=member_probs.shape[2])


def check_vectors(**vectors: Tensor) -> None:
    """Raise unless all ``vectors`` are finite and ``(n,)``, with the same ``n`` of at least 1."""
    shapes = {name: tuple(vector.shape) for name, vector in vectors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise PreconditionError(
            f"{' and '.join(vectors)} must all be (n,) with the same n >= 1, got {listed}"
        )
    for name, vector in vectors.items():
        check_finite(vector, name)


def check_finite(values: Tensor, name: str) -> None:
    """Raise NonFiniteError, with the count and the first place, if ``values`` holds NaN or infinity."""
    if has_finite_sum(values):
        return
    bad = ~values.isfinite()
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise NonFiniteError(
            f"{name} holds {int(bad.sum())} values that are NaN or infinite, the first at {first}; "
            "find the model or row they come from"
        )


def row_chunks(member_probs: Tensor) -> Iterator[Tensor]:
    """The rows of ``(m, n, c)`` in float64, a bounded number at a time: ``(m, k, c)`` each."""
    num_members, num_rows, num_classes = member_probs.shape
    step = max(1, CHUNK_NUMBERS // (num_members * num_classes))
    for start in range(0, num_rows, step):
        yield member_probs[:, start : start + step].detach().double()


def _check_probabilities(probs: Tensor, name: str, shape: str, *, ndim: int) -> None:
    if probs.ndim != ndim or probs.numel() == 0:
        raise PreconditionError(f"{name} must be {shape} with at least one of each, got {tuple(probs.shape)}")
    if probs.dtype not in SUM_TOLERANCE:
        raise PreconditionError(f"{name} must hold floating-point probabilities, got {probs.dtype}")
    check_finite(probs, name)
    tolerance = SUM_TOLERANCE[probs.dtype]
    sums = probs.detach().sum(dim=-1, dtype=torch.float64)
    off = (sums - 1.0).abs()
    if probs.min() < -tolerance or off.max() > tolerance:
        raise PreconditionError(
            f"rows of {name} must be probabilities that sum to 1, but the smallest entry is "
            f"{probs.min().item():.6g} and one row sums to {sums.flatten()[off.argmax()].item():.6g}; "
            "apply softmax to logits first"
        )


def _check_targets(targets: Tensor, *, num_rows: int, num_classes: int) -> None:
    if targets.shape != (num_rows,):
        raise PreconditionError(
            f"targets must be ({num_rows},), one class id per row, got {tuple(targets.shape)}"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise PreconditionError(f"targets must be whole class ids (int64), got {targets.dtype}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise PreconditionError(
            f"targets must be class ids from 0 to {num_classes - 1}, got ids from {low} to {high}"
        )
