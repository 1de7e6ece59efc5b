"""One model of an ensemble, and how to build it again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from hqde.ensemble.low_memory import move_model
from hqde.ensemble.packed_weights import PackedWeights
from hqde.errors import NonFiniteError, PreconditionError
from hqde.models import ModelSpec


@dataclass
class Member:
    """One trained model.

    Args:
        member_id: the group the model comes from, at least 0; unique in an ensemble.
        spec: the architecture; ``spec.build(dropout_rate=dropout_rate)`` gives a model of the same shape.
        model: the trained module. It is put into evaluation mode here and before each prediction.
        score: the efficiency score, finite; what ``EfficiencyCombiner`` weighs by.
        dropout_rate: the rate the model was built with, or None for the one in the spec's options.
        packed: what a compressed member is saved as; the model holds the same weights, decoded. None: its
            weights are saved as they are.

    >>> spec = ModelSpec("torch.nn:Linear", {"in_features": 2, "out_features": 3})
    >>> Member(0, spec, spec.build()).num_parameters
    9
    """

    member_id: int
    spec: ModelSpec
    model: nn.Module
    score: float = 1.0
    dropout_rate: float | None = None
    packed: PackedWeights | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.member_id < 0:
            raise PreconditionError(f"a member's id is at least 0, got {self.member_id}.")
        if not math.isfinite(self.score):
            raise NonFiniteError(f"member {self.member_id} has the score {self.score}: scores are finite.")
        evaluating(self.model)

    @property
    def num_parameters(self) -> int:
        """How many numbers the model's parameters hold; buffers do not count."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def with_model(self, model: nn.Module) -> Member:
        """The same member with another model, which is not packed."""
        return replace(self, model=model, packed=None)

    def to(self, device: torch.device | str) -> None:
        """Move the model to ``device``, in place."""
        move_model(self.model, device)


def evaluating(model: nn.Module) -> nn.Module:
    """The model, in evaluation mode: to set that takes longer than to look.

    >>> evaluating(nn.ReLU()).training
    False
    """
    if any(module.training for module in model.modules()):
        model.eval()
    return model
