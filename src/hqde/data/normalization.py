"""Bringing inputs and regression targets to mean 0 and standard deviation 1, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from hqde.data.examples import Examples, Inputs
from hqde.data.schema import Schema
from hqde.errors import PreconditionError
from hqde.seeding import seeded

_CHUNK_BYTES = 32 * 2**20  # float64 working memory of one chunk
_FLAT = 1e-8  # below this share of the mean a spread is rounding: float32 resolves 6e-8


@dataclass(frozen=True, eq=False)
class Normalization:
    """Inputs to float32 with mean 0 and standard deviation 1: ``(x - mean) / std``.

    Args:
        mean: (c,) per channel of images, (d,) per feature of tabular rows, or () for one number for all; in
            raw units, as the reader gives them.
        std: like ``mean``, above 0.

    >>> scale = Normalization(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    >>> scale.apply(torch.tensor([[3.0, 5.0]]))
    tensor([[1., 5.]])
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.ndim > 1:
            raise PreconditionError(
                f"mean and std must be (k,) or () alike, not {tuple(self.mean.shape)} "
                f"and {tuple(self.std.shape)}"
            )
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
            raise PreconditionError("mean and std must be finite and std above 0; refit on finite data")
        object.__setattr__(self, "mean", self.mean.detach().to(torch.float32))
        object.__setattr__(self, "std", self.std.detach().to(torch.float32))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Normalization):
            return NotImplemented
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    __hash__ = None  # type: ignore[assignment]

    def apply(self, inputs: Inputs) -> Inputs:
        """The inputs as a model sees them; nothing is changed in place.

        A single tensor becomes float32 and is scaled. Of a dict or tuple, floating tensors become float32 and
        integer tensors (token ids, masks) stay as they are.
        """
        if isinstance(inputs, Mapping):
            return {name: _as_float32(tensor) for name, tensor in inputs.items()}
        if isinstance(inputs, tuple):
            return tuple(_as_float32(tensor) for tensor in inputs)
        mean, std = self.mean, self.std
        if mean.ndim == 1:
            axis = 1 if inputs.ndim == 4 else inputs.ndim - 1
            if inputs.ndim < 2 or inputs.shape[axis] != len(mean):
                raise PreconditionError(
                    f"inputs of shape {tuple(inputs.shape)} do not fit statistics of {len(mean)} "
                    f"{'channels' if inputs.ndim == 4 else 'features'}; give inputs shaped as in training"
                )
            if inputs.ndim == 4:
                mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        return (inputs.to(torch.float32) - mean.to(inputs.device)).div_(std.to(inputs.device))

    @classmethod
    def fit(cls, examples: Examples, schema: Schema) -> Normalization:
        """Statistics of every row of ``examples`` (the training split), in float64, chunk by chunk.

        A channel or feature that never changes gets std 1. Chunks are merged by Chan, Golub and LeVeque,
        "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        if len(examples) == 0:
            raise PreconditionError("normalisation needs at least 1 row to learn from, not 0")
        if schema.kind == "other" or schema.input_shape is None:
            return cls.identity()
        count, mean = 0, torch.zeros(schema.input_shape[0], dtype=torch.float64)
        squares = torch.zeros_like(mean)  # summed squared deviations from the running mean
        chunk = max(1, _CHUNK_BYTES // (8 * max(1, prod(schema.input_shape))))
        with seeded(0, "data", "fit normalization"):
            for rows in torch.arange(len(examples)).split(chunk):
                inputs = examples.fetch(rows).inputs
                assert isinstance(inputs, Tensor)
                columns = (
                    inputs.to(torch.float64).flatten(2) if inputs.ndim == 4 else inputs.to(torch.float64)
                )
                dims = (0, 2) if inputs.ndim == 4 else (0,)
                added = columns.numel() // len(mean)
                chunk_mean = columns.mean(dims)
                deviation = columns - (chunk_mean.unsqueeze(1) if inputs.ndim == 4 else chunk_mean)
                shift = chunk_mean - mean
                squares += deviation.square().sum(dims) + shift.square() * (count * added / (count + added))
                count += added
                mean += shift * (added / count)
        std = (squares / count).sqrt()
        std = torch.where(std <= _FLAT * mean.abs(), torch.ones_like(std), std)
        return cls(mean, std)

    @classmethod
    def identity(cls) -> Normalization:
        """Statistics that only turn inputs into float32."""
        return cls(torch.tensor(0.0), torch.tensor(1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON numbers; a float32 survives the way through a Python float exactly."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalization:
        """The statistics that `to_dict` wrote, bit for bit.

        >>> scale = Normalization(torch.tensor([0.1]), torch.tensor([0.3]))
        >>> Normalization.from_dict(scale.to_dict()) == scale
        True
        """
        return cls(
            torch.tensor(values["mean"], dtype=torch.float32),
            torch.tensor(values["std"], dtype=torch.float32),
        )


@dataclass(frozen=True)
class TargetScale:
    """Regression targets to mean 0 and standard deviation 1 for training, and back: ``t = mean + std * z``.

    >>> scale = TargetScale(10.0, 2.0)
    >>> scale.apply(torch.tensor([14.0])), scale.invert(torch.tensor([2.0]))
    (tensor([2.]), tensor([14.]))
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (abs(self.mean) < float("inf") and 0.0 < self.std < float("inf")):
            raise PreconditionError(
                f"target scale needs a finite mean and std > 0: mean={self.mean}, std={self.std}"
            )

    def apply(self, targets: Tensor) -> Tensor:
        """Raw targets to standardised float32 ones; class ids (integers) pass through."""
        return (targets - self.mean) / self.std if targets.is_floating_point() else targets

    def invert(self, means: Tensor) -> Tensor:
        """Standardised predictions to target units."""
        return means * self.std + self.mean

    def invert_variance(self, variances: Tensor) -> Tensor:
        """Variances of standardised predictions to squared target units."""
        return variances * self.std**2

    @classmethod
    def fit(cls, targets: Tensor) -> TargetScale:
        """Mean and standard deviation of float ``targets`` (n,), in float64; identity for class ids.

        Targets that never change get std 1.
        """
        if not targets.is_floating_point():
            return cls()
        values = targets.to(torch.float64)
        mean, std = float(values.mean()), float(values.std(correction=0))
        return cls(mean, std if std > _FLAT * abs(mean) else 1.0)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON numbers."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> TargetScale:
        """The scale that `to_dict` wrote."""
        return cls(float(values["mean"]), float(values["std"]))


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
