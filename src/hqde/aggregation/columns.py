"""Rules that combine every coordinate by itself, on chunks of columns that stay in a core's cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.aggregation.gram import BLOCK
from hqde.aggregation.network import Comparator
from hqde.aggregation.rule import Basis, Decision, FaultBound
from hqde.errors import NonFiniteError

# Bytes that the rows of a chunk may take: about a core's second-level cache. Below 4096 columns a comparison
# costs less than calling it.
CHUNK_BYTES = 1 << 20
LEAST_WIDTH = 1 << 12
# On an accelerator a call costs more, and there is no such cache.
DEVICE_BYTES = 1 << 28


class ColumnRule(FaultBound):
    """A rule by columns: sees chunks of columns as a list of rows, and pools them to one.

    Every row counts the same whatever its share: what the rule bears is counted in heads.
    """

    basis: ClassVar[Basis] = "columns"
    counts: ClassVar[Literal["weight", "heads", "nothing"]] = "heads"

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:  # noqa: ARG002 - the rule's signature
        """Nothing to decide, once there are rows enough."""
        self.check_bound(len(shares))
        return Decision()

    @abstractmethod
    def pool(self, wires: list[Tensor], spare: Tensor) -> Tensor:
        """n rows ``(w,)`` to one ``(w,)``. They and ``spare`` may be overwritten and returned."""

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """Columns ``(n, c)`` to ``(c,)``; of the decision's mixtures of rows if it has any.

        Raises:
            NonFiniteError: a row holds NaN or infinity.
        """
        value = torch.empty_like(rows[0], memory_format=torch.contiguous_format)
        for columns, chunk in _chunks(rows, decision.mixing):
            wires = list(chunk.unbind(0))
            value[columns] = self.pool(wires, torch.empty_like(wires[0]))
        return value


def run_network(program: Sequence[Comparator], wires: list[Tensor], spare: Tensor) -> Tensor:
    """Let rows ``(w,)`` run through a network, in place; returns a row that is free to be overwritten.

    Example:
        >>> from hqde.aggregation.network import network
        >>> wires = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 5.0])]
        >>> free = run_network(network(2, range(0), (0, 1)), wires, torch.empty(2))
        >>> wires
        [tensor([2., 1.]), tensor([3., 5.])]
    """
    minimum, maximum = torch.minimum, torch.maximum
    for low, high, keeps_low, keeps_high in program:
        a, b = wires[low], wires[high]
        if keeps_low and keeps_high:
            minimum(a, b, out=spare)
            maximum(a, b, out=b)
            wires[low], spare = spare, a
        elif keeps_low:
            minimum(a, b, out=a)
        else:
            maximum(a, b, out=b)
    return spare


def _chunks(rows: Sequence[Tensor] | Tensor, mixing: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of columns ``(k, w)`` to write to, and where they lie; float32, or float64 if the rows are."""
    first = rows[0]
    work = torch.float64 if first.dtype == torch.float64 else torch.float32
    picked = _picked(mixing)
    if picked is not None:
        rows, mixing = [rows[i] for i in picked], None
    elif mixing is not None:
        used = mixing.ne(0).any(dim=0).nonzero().flatten().tolist()
        rows, mixing = [rows[i] for i in used], mixing[:, used].to(first.device, work)
    width = _width(max(len(rows), 0 if mixing is None else len(mixing)), work, first.device)
    space = torch.empty(len(rows) * min(width, len(first)), dtype=work, device=first.device)
    for begin in range(0, len(first), width):
        columns = slice(begin, min(begin + width, len(first)))
        chunk = space[: len(rows) * (columns.stop - begin)].view(len(rows), columns.stop - begin)
        if isinstance(rows, Tensor):
            chunk.copy_(rows[:, columns])
        else:
            for target, row in zip(chunk, rows, strict=True):
                target.copy_(row[columns])
        if not bool(torch.isfinite(chunk.sum())) and not bool(torch.isfinite(chunk).all()):
            raise NonFiniteError("a row holds NaN or infinity: admit updates before a rule sees them.")
        yield columns, chunk if mixing is None else mixing @ chunk


def _picked(mixing: Tensor | None) -> list[int] | None:
    """Which rows a mixing picks, if it does nothing but pick."""
    if mixing is None or not bool(((mixing == 0) | (mixing == 1)).all() and (mixing.sum(dim=1) == 1).all()):
        return None
    return mixing.argmax(dim=1).tolist()


def _width(num_rows: int, work: torch.dtype, device: torch.device) -> int:
    """Columns of a chunk: a power of two that divides BLOCK, so that a shard has the chunks of the whole.

    It follows from the number of rows alone: a product of matrices of another width may round otherwise.
    """
    budget = (CHUNK_BYTES if device.type == "cpu" else DEVICE_BYTES) // (num_rows * work.itemsize)
    return max(LEAST_WIDTH, min(BLOCK, 1 << max(0, budget.bit_length() - 1)))
