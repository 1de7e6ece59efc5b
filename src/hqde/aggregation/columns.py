"""Rules that combine every coordinate by itself, on chunks of columns that stay in a core's cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from threading import local
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.aggregation.gram import BLOCK
from hqde.aggregation.network import Comparator
from hqde.aggregation.rule import Basis, Decision, FaultBound
from hqde.aggregation.threads import slices, spread
from hqde.errors import NonFiniteError
from hqde.finite import is_finite

# Columns of a chunk: on the processor few enough to stay in its cache, and enough that comparing two rows
# costs more than asking for it. Chunks begin at multiples of BLOCK, so that a shard has the chunks of the
# whole: a product of matrices of another width may round otherwise.
WIDTH = BLOCK
DEVICE_WIDTH = 1 << 22


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
        rows, mixing = _needed(rows, decision.mixing)
        spaces = local()  # a thread's own

        def work(columns: slice) -> None:
            if not hasattr(spaces, "space"):
                spaces.space = _space(rows, width)
            chunk = _loaded(rows, columns, spaces.space)
            wires = list((chunk if mixing is None else mixing @ chunk).unbind(0))
            value[columns] = self.pool(wires, torch.empty_like(wires[0]))

        width = WIDTH if value.device.type == "cpu" else DEVICE_WIDTH
        spread(work, slices(0, len(value), width))
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


def _needed(
    rows: Sequence[Tensor] | Tensor, mixing: Tensor | None
) -> tuple[Sequence[Tensor] | Tensor, Tensor | None]:
    """The rows that are read, and how they are mixed, ``None`` if not at all."""
    if mixing is None:
        return rows, None
    picked = _picked(mixing)
    if picked is not None:
        return [rows[i] for i in picked], None
    used = mixing.ne(0).any(dim=0).nonzero().flatten().tolist()
    return [rows[i] for i in used], mixing[:, used].to(rows[0].device, _work_dtype(rows[0]))


def _work_dtype(row: Tensor) -> torch.dtype:
    return torch.float64 if row.dtype == torch.float64 else torch.float32


def _space(rows: Sequence[Tensor] | Tensor, width: int) -> Tensor:
    """Room for a chunk of the rows."""
    first = rows[0]
    return torch.empty(len(rows) * min(width, len(first)), dtype=_work_dtype(first), device=first.device)


def _loaded(rows: Sequence[Tensor] | Tensor, columns: slice, space: Tensor) -> Tensor:
    """A chunk of columns ``(n, w)`` in ``space``, to be overwritten; float32, or float64 if the rows are.

    Raises:
        NonFiniteError: a row holds NaN or infinity.
    """
    width = columns.stop - columns.start
    chunk = space[: len(rows) * width].view(len(rows), width)
    if isinstance(rows, Tensor):
        chunk.copy_(rows[:, columns])
    else:
        for target, row in zip(chunk, rows, strict=True):
            target.copy_(row[columns])
    if not is_finite(chunk):
        raise NonFiniteError("a row holds NaN or infinity: admit updates before a rule sees them.")
    return chunk


def _picked(mixing: Tensor | None) -> list[int] | None:
    """Which rows a mixing picks, if it does nothing but pick."""
    if mixing is None or not bool(((mixing == 0) | (mixing == 1)).all() and (mixing.sum(dim=1) == 1).all()):
        return None
    return mixing.argmax(dim=1).tolist()
