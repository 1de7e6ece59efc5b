"""What bad workers may hand in: test vectors for rules, and the adversary of drills.

An attack knows everything: it sees the rows of all honest workers before it makes its own. That is the model
under which rules are proven; a real adversary knows less.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.errors import ConfigError, PreconditionError


class Attack(ABC):
    """``(honest (h, d), count) -> (count, d)``: the rows of so many bad workers. Never mutates."""

    name: ClassVar[str]

    @abstractmethod
    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The bad rows. Only ``generator`` is random."""

    def __call__(self, honest: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The bad rows, after the shapes have been checked.

        Args:
            honest: ``(h, d)`` floating, h ≥ 1.
            count: how many bad workers there are.
            generator: of attacks that draw; seeded with 0 if not given.

        Raises:
            PreconditionError: there are no honest rows to look at.
        """
        if honest.ndim != 2 or not len(honest) or count < 0:
            raise PreconditionError(
                f"an attack needs honest rows (h, d) with h >= 1 and a count from 0 on, got "
                f"{tuple(honest.shape)} and {count}"
            )
        draws = generator if generator is not None else torch.Generator(honest.device).manual_seed(0)
        return self.craft(honest, count, draws).to(honest.dtype)


def same_row(row: Tensor, count: int) -> Tensor:
    """One row, handed in by all bad workers: ``(count, d)``."""
    return row.unsqueeze(0).repeat(count, 1)


@dataclass(frozen=True)
class SignFlip(Attack):
    """Minus the mean of the honest rows, times ``strength``.

    >>> SignFlip(strength=2.0)(torch.tensor([[1.0], [3.0]]), 1)
    tensor([[-4.]])
    """

    name: ClassVar[str] = "sign_flip"
    strength: float = 1.0

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """-s · mean."""
        return same_row(-self.strength * honest.mean(dim=0), count)


@dataclass(frozen=True)
class ScaledUpdate(Attack):
    """The mean of the honest rows, ``strength`` times too long (model replacement, Bagdasaryan et al. 2020).

    >>> ScaledUpdate(strength=10.0)(torch.tensor([[1.0], [3.0]]), 1)
    tensor([[20.]])
    """

    name: ClassVar[str] = "scaled_update"
    strength: float = 10.0

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """s · mean."""
        return same_row(self.strength * honest.mean(dim=0), count)


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Independent normal numbers of standard deviation ``strength``, another row for each bad worker.

    >>> GaussianNoise(strength=0.5)(torch.zeros(3, 10_000), 2).std()
    tensor(0.50)
    """

    name: ClassVar[str] = "gaussian"
    strength: float = 0.5

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """N(0, s²)."""
        shape = (count, honest.shape[1])
        return self.strength * torch.randn(shape, generator=generator, device=honest.device)


@dataclass(frozen=True)
class ConstantRow(Attack):
    """The same number everywhere.

    >>> ConstantRow(strength=2.0)(torch.ones(2, 3), 1)
    tensor([[2., 2., 2.]])
    """

    name: ClassVar[str] = "constant"
    strength: float = 1.0

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """s in every coordinate."""
        return honest.new_full((count, honest.shape[1]), self.strength)


@dataclass(frozen=True)
class ZeroRow(Attack):
    """Nothing: workers that hand the weights back as they got them.

    >>> ZeroRow()(torch.ones(2, 3), 1)
    tensor([[0., 0., 0.]])
    """

    name: ClassVar[str] = "zero"

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """0 in every coordinate."""
        return honest.new_zeros((count, honest.shape[1]))


@dataclass(frozen=True)
class NonFinite(Attack):
    """The mean of the honest rows with one NaN or infinity in it.

    >>> NonFinite("inf")(torch.zeros(2, 3), 1)
    tensor([[inf, 0., 0.]])
    """

    name: ClassVar[str] = "non_finite"
    kind: Literal["nan", "inf", "-inf"] = "nan"

    def __post_init__(self) -> None:
        if self.kind not in ("nan", "inf", "-inf"):
            raise ConfigError(f"kind of 'non_finite' must be 'nan', 'inf' or '-inf', got '{self.kind}'")

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """One bad number in front."""
        rows = same_row(honest.mean(dim=0), count)
        rows[:, :1] = float(self.kind)
        return rows


@dataclass(frozen=True)
class Replay(Attack):
    """An update handed in again: the rows given here, in turn, whatever the round.

    >>> Replay((torch.tensor([5.0]),))(torch.zeros(2, 1), 2)
    tensor([[5.],
            [5.]])
    """

    name: ClassVar[str] = "replay"
    rows: tuple[Tensor, ...]

    def craft(self, honest: Tensor, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """The kept rows."""
        if not self.rows or self.rows[0].shape != honest.shape[1:]:
            raise PreconditionError(
                f"'replay' needs earlier rows of shape {tuple(honest.shape[1:])}, got "
                f"{[tuple(row.shape) for row in self.rows]}"
            )
        return torch.stack([self.rows[i % len(self.rows)] for i in range(count)]) if count else honest[:0]


def flip_labels(targets: Tensor, num_classes: int, *, mapping: dict[int, int] | None = None) -> Tensor:
    """Labels of a worker that learns the wrong ones: y becomes C - 1 - y, or what ``mapping`` says.

    Args:
        targets: ``(n,)`` int64 classes below C.
        num_classes: C.
        mapping: class to class; classes that it leaves out stay.

    Example:
        >>> flip_labels(torch.tensor([0, 1, 9]), 10)
        tensor([9, 8, 0])
        >>> flip_labels(torch.tensor([0, 1, 9]), 10, mapping={0: 2, 1: 2})
        tensor([2, 2, 9])

    Source: Fang et al. 2020, "Local model poisoning attacks to Byzantine-robust federated learning", 5.1.
    """
    table = torch.arange(num_classes - 1, -1, -1)
    if mapping is not None:
        table = torch.arange(num_classes)
        for found, made in mapping.items():
            if not (0 <= found < num_classes and 0 <= made < num_classes):
                raise ConfigError(f"labels {found} -> {made} are not below {num_classes} classes")
            table[found] = made
    return table.to(targets.device)[targets]
