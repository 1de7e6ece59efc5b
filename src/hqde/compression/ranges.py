"""Which coordinates of a vector stay dense, and the stream that the others make."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

from hqde.errors import PreconditionError
from hqde.weights import Layout

Range = tuple[int, int]


def dense_ranges(layout: Layout, *, smallest: int = 1024) -> tuple[Range, ...]:
    """The coordinates of a model that are not worth quantising, or that bear it badly.

    1-D parameters (biases, normalisations), tensors with fewer than ``smallest`` elements, and all floating
    buffers (running statistics).

    Args:
        layout: of the model whose flat vectors are to be compressed.
        smallest: elements from which a parameter of two or more dimensions is quantised.

    Returns:
        sorted disjoint ``(start, stop)``; neighbours are merged.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 4))
        >>> dense_ranges(Layout.of(model))
        ((2048, 2340),)
    """
    small = [slot for slot in layout.parameters if len(slot.shape) < 2 or slot.size < smallest]
    found = [(slot.offset, slot.end) for slot in (*small, *layout.buffers)]
    merged: list[Range] = []
    for start, stop in found:
        if start == stop:
            continue
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


@dataclass(frozen=True)
class Stream:
    """The coordinates that are quantised, one behind the other, as if the dense ones were not there.

    Args:
        count: length of the whole vector.
        dense: sorted disjoint ranges of it that do not belong to the stream.

    Raises:
        PreconditionError: ranges that are empty, overlap, are not sorted or leave the vector.

    Example:
        >>> stream = Stream(10, ((0, 2), (5, 6)))
        >>> stream.size, stream.num_dense
        (7, 3)
        >>> stream.read(torch.arange(10.0), 2, 5)
        tensor([4., 6., 7.])
        >>> stream.position(5), stream.position(6)
        (3, 3)
    """

    count: int
    dense: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        # One walk for the good case: decoders come here with what a packet says.
        ends = list(chain.from_iterable(self.dense))
        inside = not ends or (ends[0] >= 0 and ends[-1] <= self.count)
        if not inside or not all(a < b for a, b in self.dense) or not all(a <= b for a, b in pairwise(ends)):
            raise PreconditionError(
                f"dense ranges must be sorted, disjoint, not empty and within a vector of {self.count}; "
                f"got {list(self.dense)[:4]}{' …' if len(self.dense) > 4 else ''}"
            )

    @cached_property
    def num_dense(self) -> int:
        """Coordinates in the dense ranges."""
        return sum(stop - start for start, stop in self.dense)

    @property
    def size(self) -> int:
        """Coordinates in the stream."""
        return self.count - self.num_dense

    @cached_property
    def _gaps(self) -> list[Range]:
        ends = [0, *chain.from_iterable(self.dense), self.count]
        return [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b]

    @cached_property
    def _starts(self) -> list[int]:
        """Position in the stream at which each gap begins."""
        return list(accumulate((b - a for a, b in self._gaps), initial=0))

    def position(self, coordinate: int) -> int:
        """How many coordinates of the stream come before this one of the vector."""
        before = sum(min(stop, coordinate) - start for start, stop in self.dense if start < coordinate)
        return coordinate - before

    def pieces(self, start: int, stop: int) -> Iterator[Range]:
        """The ranges of the vector that make up stream[start:stop]."""
        at = bisect_right(self._starts, start) - 1
        while start < stop:
            first, last = self._gaps[at]
            begin = first + start - self._starts[at]
            end = min(last, begin + stop - start)
            yield begin, end
            start += end - begin
            at += 1

    def read(self, vector: Tensor, start: int, stop: int) -> Tensor:
        """stream[start:stop] of a vector ``(count,)``: a view where it is in one piece."""
        pieces = [vector[a:b] for a, b in self.pieces(start, stop)]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces) if pieces else vector[:0]

    def write(self, vector: Tensor, start: int, values: Tensor) -> None:
        """Set stream[start : start + len(values)] of a vector ``(count,)``."""
        done = 0
        for a, b in self.pieces(start, start + len(values)):
            vector[a:b] = values[done : done + b - a]
            done += b - a

    def read_gradient(self, gradient: Tensor | None) -> Tensor | None:
        """The stream of a gradient of the vector, if there is one.

        Raises:
            PreconditionError: it does not fit the vector.
        """
        if gradient is None:
            return None
        if gradient.shape != (self.count,):
            raise PreconditionError(f"a gradient of {tuple(gradient.shape)} for a vector of {self.count}")
        return self.read(gradient.detach(), 0, self.size)

    def read_dense(self, vector: Tensor) -> list[Tensor]:
        """The dense ranges of a vector ``(count,)``, as views."""
        return [vector[start:stop] for start, stop in self.dense]


def as_ranges(ranges: Sequence[Sequence[int]]) -> tuple[Range, ...]:
    """Ranges as a tuple of tuples of plain whole numbers."""
    return tuple((int(start), int(stop)) for start, stop in ranges)
