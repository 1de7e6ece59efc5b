"""What a stack of workers holds, and how its model is called."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hqde.models import call_model
from hqde.training.stacked_optimizers import Moments


@dataclass
class Stacked:
    """The state of w workers: what a step reads and changes in place.

    Attributes:
        rows: ``(w, d)`` trained parameters, in the order of the optimizers.
        buffers: by name, ``(w, …)``; with parameters that are frozen.
        moments: of the optimizers.
    """

    rows: Tensor
    buffers: dict[str, Tensor]
    moments: Moments

    def take(self, index: Tensor) -> Stacked:
        """Copies of some workers' rows."""
        return Stacked(
            self.rows[index],
            {name: value[index] for name, value in self.buffers.items()},
            {name: value[index] for name, value in self.moments.items()},
        )

    def put(self, index: Tensor, some: Stacked) -> None:
        """Put back what ``take`` gave."""
        self.rows[index] = some.rows
        for name, value in some.buffers.items():
            self.buffers[name][index] = value
        for name, value in some.moments.items():
            self.moments[name][index] = value


class Calling(nn.Module):
    """A model that is called with one argument, whatever its inputs are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: object) -> Tensor:
        """As ``call_model``."""
        return call_model(self.model, inputs)  # type: ignore[arg-type]
