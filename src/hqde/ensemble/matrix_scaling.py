"""Matrix scaling: which classes a model takes for which, seen on held-out rows and undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from hqde.data import Splits
from hqde.ensemble.calibration import log_of
from hqde.ensemble.cross_validation import folds, simplest
from hqde.errors import ConfigError, PreconditionError
from hqde.metrics.checks import check_probs

# Standard deviation of an entry of the matrix before any row is seen; 0 leaves probabilities as they are.
SPREADS = (0.0, 0.03, 0.1, 0.3, 1.0)
BIAS_SPREADS = 10.0  # that of an offset, over an entry's: entries count times logarithms, which are about -10
LEAST_ROWS = 100
MOST_CLASSES = 200
MOST_STEPS = 200


@dataclass(frozen=True, eq=False)
class MatrixScaling:
    """``softmax(W log p + b)``: probabilities of classes that are taken for each other, put right.

    A temperature cannot change which class comes first; this can. It mends what is wrong alike in all rows:
    classes that are named too often or too seldom, because workers have seen few of their rows or were taught
    wrong labels. With W = I/T and b = 0 it is a temperature.

    Args:
        weight: W, (c, c); kept in float64.
        bias: b, (c,); likewise.

    Raises:
        PreconditionError: shapes that do not fit, or a number that is not finite.

    >>> swap = MatrixScaling(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2))
    >>> swap.apply(torch.tensor([[0.75, 0.25]]))
    tensor([[0.2500, 0.7500]])

    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks" (2017), for the name;
    Kull et al., "Beyond temperature scaling: obtaining well-calibrated multiclass probabilities with
    Dirichlet calibration" (2019), for logarithms of probabilities instead of logits, and a prior.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape != (len(self.bias), len(self.bias)):
            raise PreconditionError(
                f"matrix scaling takes a matrix (c, c) and an offset (c,), got {tuple(self.weight.shape)} "
                f"and {tuple(self.bias.shape)}."
            )
        for name in ("weight", "bias"):
            object.__setattr__(self, name, getattr(self, name).detach().cpu().double())
        if not bool(torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise PreconditionError("matrix scaling takes finite numbers, and some are not: fit it anew.")

    @property
    def num_classes(self) -> int:
        """c."""
        return len(self.bias)

    def apply(self, probs: Tensor) -> Tensor:
        """Probabilities (n, c) from (n, c), in their dtype."""
        return scale_by_matrix(probs, self.weight, self.bias)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"weight": self.weight.tolist(), "bias": self.bias.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(*(torch.tensor(values[key], dtype=torch.float64) for key in ("weight", "bias")))


def check_can_scale(splits: Splits, *, calibrate: bool) -> None:
    """Refuse a run that asks for a matrix scaling and cannot fit one.

    Args:
        splits: its data.
        calibrate: whether it fits a temperature.

    Raises:
        ConfigError: no classes or too many, no temperature, or too few validation rows.
    """
    classes, rows = splits.schema.num_classes, len(splits.validation)
    if splits.schema.task != "classification":
        raise ConfigError("ensemble.matrix_scaling is for classes: switch it off for regression")
    if not calibrate:
        raise ConfigError(
            "ensemble.matrix_scaling follows the temperature: set ensemble.calibrate = true as well"
        )
    if classes > MOST_CLASSES:
        raise ConfigError(
            f"ensemble.matrix_scaling is for at most {MOST_CLASSES} classes, and there are {classes}; "
            "switch it off"
        )
    if rows < LEAST_ROWS:
        raise ConfigError(
            f"ensemble.matrix_scaling needs at least {LEAST_ROWS} validation rows, and there are {rows}; "
            "hold more out, or switch it off"
        )


def scale_by_matrix(probs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``softmax(W log p + b)`` (n, c), from probabilities (n, c), W (c, c) and b (c,)."""
    scaled = log_of(probs) @ weight.to(probs).T + bias.to(probs)
    return torch.softmax(scaled, dim=-1)


def fit_matrix_scaling(probs: Tensor, targets: Tensor) -> MatrixScaling | None:
    """The most probable matrix scaling, given held-out rows; ``None`` where they do not speak for one.

    With ``z = log p`` and the spread s it minimises

        Σ_i [log Σ_c exp(W_c z_i + b_c) − W_y z_i − b_y]  +  |W − I|² / (2 s²)  +  |b|² / (2 (10 s)²)

    which is convex. s is the first of 0, 0.03, 0.1, 0.3 and 1 whose NLL on rows that were left out, in five
    folds, is no more than two standard errors above the least; 0 is no matrix at all. Nor is there one if it
    does not put more of these rows right, by two standard errors. So a few rows, or probabilities that are
    right already, change nothing. Solved by Newton's method; no randomness. It takes a second for 1 000 rows
    of ten classes, and minutes for 10 000 of 200.

    Args:
        probs: (n, c) of the combined ensemble, its temperature included; n at least 1, c at most 200. With
            fewer than 100 rows there is no matrix.
        targets: (n,) class ids.

    Raises:
        PreconditionError: shapes or labels that do not fit, or too many classes.
        NonFiniteError: a probability is NaN or infinite.

    >>> seen, told = torch.arange(400) % 2, torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    >>> found = fit_matrix_scaling(told[seen], seen)  # the second class is always taken for the first
    >>> found.apply(told).argmax(dim=1)
    tensor([0, 1])
    """
    check_probs(probs, targets)
    if probs.shape[1] > MOST_CLASSES:
        raise PreconditionError(
            f"matrix scaling learns a number for each pair of {probs.shape[1]} classes: it is for at most "
            f"{MOST_CLASSES}; use the temperature alone."
        )
    if len(targets) < LEAST_ROWS:
        return None
    logs, targets = log_of(probs.detach().cpu()).double(), targets.cpu().long()
    scaled = _cross_validated(logs, targets)
    losses = torch.stack([functional.cross_entropy(kind, targets, reduction="none") for kind in scaled])
    place = simplest(losses)
    wrong = (scaled[[0, place]].argmax(dim=2) != targets).double()
    return None if simplest(wrong) == 0 else _solve(logs, targets, SPREADS[place], None)


def _cross_validated(logs: Tensor, targets: Tensor) -> Tensor:
    """Logits of each row by each of ``SPREADS``, fitted to the other folds: (5, n, c)."""
    scaled = logs.repeat(len(SPREADS), 1, 1)
    # Each fold has its share of every class, the first that comes first; numbers of classes play no part.
    places = torch.arange(len(targets))
    first = places.new_full((logs.shape[1],), len(targets)).scatter_reduce(0, targets, places, "amin")
    by_class = first[targets].argsort(stable=True)
    for kept, left in ((by_class[kept], by_class[left]) for kept, left in folds(len(targets))):
        found: MatrixScaling | None = None
        for place, spread in enumerate(SPREADS[1:], start=1):
            found = _solve(logs[kept], targets[kept], spread, found)
            scaled[place, left] = logs[left] @ found.weight.T + found.bias
    return scaled


def _solve(logs: Tensor, targets: Tensor, spread: float, start: MatrixScaling | None) -> MatrixScaling:
    """The minimum of `fit_matrix_scaling`, from logarithms (n, c) float64."""
    # Deferred: nobody who only loads and predicts should wait for scipy.
    from scipy.optimize import minimize

    num_rows, num_classes = logs.shape
    # An offset is one more entry, of a column that is the same in all rows.
    rows = torch.cat([logs, torch.full((num_rows, 1), BIAS_SPREADS, dtype=logs.dtype)], dim=1)
    plain = torch.eye(num_classes, num_classes + 1, dtype=logs.dtype)
    labels = functional.one_hot(targets, num_classes).to(logs)

    def objective(flat: Any) -> tuple[float, Any]:
        entries = torch.from_numpy(flat).view_as(plain)
        scaled = rows @ entries.T
        away = (entries - plain) / spread
        loss = functional.cross_entropy(scaled, targets) + away.square().sum() / (2.0 * num_rows)
        slope = (torch.softmax(scaled, dim=1) - labels).T @ rows + away / spread
        return float(loss), (slope / num_rows).flatten().numpy()

    def curvature(flat: Any, direction: Any) -> Any:
        probs = torch.softmax(rows @ torch.from_numpy(flat).view_as(plain).T, dim=1)
        turned = torch.from_numpy(direction).view_as(plain)
        moved = rows @ turned.T
        moved = probs * (moved - (probs * moved).sum(dim=1, keepdim=True))
        return ((moved.T @ rows + turned / spread**2) / num_rows).flatten().numpy()

    first = plain
    if start is not None:
        first = torch.cat([start.weight, start.bias[:, None] / BIAS_SPREADS], dim=1)
    found = minimize(
        objective,
        first.flatten().numpy(),
        jac=True,
        hessp=curvature,
        method="trust-krylov",
        options={"maxiter": MOST_STEPS, "gtol": 1e-6},
    )
    entries = torch.from_numpy(found.x).view_as(plain)
    return MatrixScaling(entries[:, :-1].contiguous(), entries[:, -1] * BIAS_SPREADS)
