"""What adds up over a worker's round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tally:
    """Losses and hits of a round, left on the device until the round is over.

    Attributes:
        rate: learning rate of the last step.
        num_samples: trained on.
        step_losses: mean loss of each step.
    """

    rate: float
    num_samples: int = 0
    step_losses: list[Tensor] = field(default_factory=list)
    _loss_sum: Tensor | None = None
    _correct: Tensor | None = None

    def add(self, losses: Tensor, hits: Tensor | None, rate: float) -> None:
        """One step.

        Args:
            losses: of its examples, ``(n,)``.
            hits: how many were classified right; ``None`` where there are no classes.
            rate: learning rate.
        """
        self.rate = rate
        self.num_samples += len(losses)
        self.step_losses.append(losses.mean())
        self._loss_sum = losses.sum() if self._loss_sum is None else self._loss_sum + losses.sum()
        if hits is not None:
            self._correct = hits if self._correct is None else self._correct + hits

    @classmethod
    def of_sums(cls, rate: float, counts: Sequence[int], sums: Tensor, hits: Tensor | None) -> Tally:
        """Of all steps of a round at once.

        Args:
            rate: of the last step.
            counts: examples of each step, ``(s,)``.
            sums: of their losses, ``(s,)``.
            hits: how many of them were classified right, ``(s,)``.
        """
        means = sums / torch.tensor(counts, dtype=sums.dtype)
        right = None if hits is None else hits.sum()
        return cls(rate, sum(counts), list(means), sums.sum(), right)

    @property
    def mean_loss(self) -> float:
        """Per example; NaN if there was none."""
        return float("nan") if self._loss_sum is None else float(self._loss_sum) / self.num_samples

    @property
    def accuracy(self) -> float | None:
        """Of the training examples, each before the step that it was part of."""
        return None if self._correct is None else float(self._correct) / self.num_samples

    def losses_by_step(self) -> list[float]:
        """Mean loss of each step; for after the round, as on a GPU every look at a number waits."""
        return torch.stack(self.step_losses).tolist() if self.step_losses else []
