"""What a stack of workers holds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hqde.training.held import Moments


@dataclass
class Stacked:
    """The state of w workers: what a step reads and changes in place.

    Attributes:
        rows: ``(w, d)`` trained parameters.
        buffers: by name, ``(w, …)``; with parameters that are frozen.
        moments: of the optimizers, in the order of ``rows``.
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
