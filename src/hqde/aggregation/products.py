"""Rows that are read block of columns by block: inner products within a block, and weighted sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hqde.aggregation.threads import slices
from hqde.errors import PreconditionError

# Columns that are copied, where rows cannot be read in place.
COPIED_AT_ONCE = 1 << 14


class Rows:
    """n vectors ``(d,)`` of one floating dtype; never mutated.

    Attributes:
        vectors: as they were given.
        size: d.
        dtype, device: of the vectors.
    """

    def __init__(self, vectors: Sequence[Tensor] | Tensor) -> None:
        vectors = vectors if isinstance(vectors, Tensor) else list(vectors)  # held, while they are read
        first = vectors[0]
        if not isinstance(vectors, Tensor) and any(len(vector) != len(first) for vector in vectors):
            raise PreconditionError(f"rows of lengths {sorted({len(v) for v in vectors})} cannot be added up")
        self.vectors = vectors
        self.size, self.dtype, self.device = len(first), first.dtype, first.device
        self._begins = _begins(vectors) if self.device.type == "cpu" else None

    def __len__(self) -> int:
        return len(self.vectors)

    def in_place(self, dtype: torch.dtype) -> bool:
        """Whether the vectors can be read as they are by a loop over numbers of ``dtype``."""
        return self._begins is not None and dtype == self.dtype

    def addresses(self, columns: slice, dtype: torch.dtype) -> Any:
        """``(n,)`` int64: where the columns of each vector begin, or those of a copy as ``dtype``."""
        if self.in_place(dtype):
            return self._begins + columns.start * dtype.itemsize
        return _begins(self.copied(columns, dtype))

    def products_in_place(
        self, columns: slice, block: int, limits: tuple[float, float, float]
    ) -> tuple[Tensor, list[bool]]:
        """Inner products ``(b, n + 1, n + 1)`` of rows and origin minus the first row, of b blocks.

        Args:
            columns: b blocks; the last one may have fewer columns.
            block: columns of a block.
            limits: as of ``kernels.block_products``.

        Returns:
            the products, and which of them can be trusted.
        """
        from hqde.aggregation import kernels  # numba takes half a second to import

        size = columns.stop - columns.start
        count, points = -(-size // block), len(self) + 1
        found = torch.zeros(count, points, points, dtype=torch.float64)
        settled = np.empty(count, bool)
        origin = scratch.zeros(min(size, block), self.dtype).data_ptr()
        addresses = np.append(self.addresses(columns, self.dtype), origin)
        space = _workspace(points, self.dtype)
        kernels.block_products(addresses, size, block, limits, *space, found.numpy(), settled)
        return found, settled.tolist()

    def combine(self, columns: slice, factors: Tensor, total: Tensor) -> None:
        """Put Σᵢ factorᵢ · rowᵢ into these columns of ``total (d,)``, in its dtype, the factors' too."""
        if self.device.type != "cpu":
            for part in slices(columns.start, columns.stop, COPIED_AT_ONCE):
                torch.mv(self.copied(part, total.dtype).T, factors, out=total[part])
            return
        from hqde.aggregation import kernels

        width = columns.stop - columns.start if self.in_place(total.dtype) else COPIED_AT_ONCE
        for part in slices(columns.start, columns.stop, width):
            kernels.combined(self.addresses(part, total.dtype), factors.numpy(), total[part].numpy())

    def copied(self, columns: slice, dtype: torch.dtype) -> Tensor:
        """The columns ``(n, c)`` as ``dtype``, in the thread's workspace: until it is asked for again."""
        width = min(columns.stop, self.size) - columns.start
        room = scratch.room("rows", len(self) * width, dtype, self.device).view(len(self), width)
        for place, vector in zip(room, self.vectors, strict=True):
            place.copy_(vector[columns])
        return room


@dataclass(frozen=True)
class Block:
    """Some columns of all rows."""

    rows: Rows
    columns: slice

    @property
    def width(self) -> int:
        """How many columns there are."""
        return max(0, min(self.columns.stop, self.rows.size) - self.columns.start)

    def products(self, members: Sequence[int], reference: int, dtype: torch.dtype) -> Tensor:
        """Inner products ``(m, m)`` float64, on the CPU, of points minus one of them.

        Symmetric to the bit; 0 for the reference.

        Args:
            members: positions of rows, and n for the origin.
            reference: position in ``members`` of the point that is taken from all.
            dtype: to multiply in, float32 or float64.
        """
        if self.rows.device.type == "cpu":
            return self._compiled_products(list(members), reference, dtype)
        vectors = self.rows.copied(self.columns, dtype)
        points = torch.cat([vectors, vectors.new_zeros(1, self.width)])[list(members)]
        points -= points[reference].clone()
        products = (points @ points.T).double().cpu()
        return torch.add(products, products.T).mul_(0.5)

    def _compiled_products(self, members: list[int], reference: int, dtype: torch.dtype) -> Tensor:
        from hqde.aggregation import kernels

        origin = scratch.zeros(self.width, dtype)
        addresses = np.append(self.rows.addresses(self.columns, dtype), origin.data_ptr())[members]
        found = torch.zeros(len(members), len(members), dtype=torch.float64)
        space = _workspace(len(members), dtype)
        kernels.centred_products(addresses, reference, self.width, *space, found.numpy())
        return found


class Scratch(local):
    """Memory that a thread works in, over and over: to ask for it anew costs as much as to fill it."""

    def __init__(self) -> None:
        self._kept: dict[object, Tensor] = {}

    def room(self, use: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """``(size,)`` numbers of any value, at a multiple of 64 bytes."""
        key, least = (use, dtype, device), size + 64 // dtype.itemsize
        kept = self._kept.get(key)
        if kept is None or len(kept) < least:
            with torch.inference_mode(False):  # it is written to again outside
                kept = self._kept[key] = torch.empty(least, dtype=dtype, device=device)
        skipped = -kept.data_ptr() % 64 // dtype.itemsize
        return kept[skipped : skipped + size]

    def zeros(self, size: int, dtype: torch.dtype) -> Tensor:
        """``(size,)``, on the CPU; not to be written to."""
        kept = self._kept.get(("zeros", dtype))
        if kept is None or len(kept) < size:
            with torch.inference_mode(False):
                kept = self._kept["zeros", dtype] = torch.zeros(size, dtype=dtype)
        return kept[:size]


scratch = Scratch()


def _workspace(count: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """What the products of so many points are made in: centred points, and sums."""
    from hqde.aggregation import kernels

    padded = -(-(count - 1) // kernels.TILE) * kernels.TILE
    wide, cpu = kernels.CHUNK + kernels.GAP, torch.device("cpu")
    points = scratch.room("points", padded * wide, dtype, cpu).view(padded, wide)
    sums = scratch.room("sums", padded * padded, torch.float64, cpu).view(padded, padded)
    return points.numpy(), sums.numpy()


def _begins(vectors: Sequence[Tensor] | Tensor) -> Any:
    """``(n,)`` int64: addresses of the vectors; ``None`` if they are not plain numbers in a row."""
    if isinstance(vectors, Tensor):
        first, step = vectors.data_ptr(), vectors.stride(0) * vectors.element_size()
        plain = vectors.stride(1) == 1 and not vectors.is_neg()
        return first + step * np.arange(len(vectors)) if plain else None
    kind = vectors[0].dtype, vectors[0].device, 1, False
    if any((v.dtype, v.device, v.stride(0), v.is_neg()) != kind for v in vectors):
        return None
    return np.array([vector.data_ptr() for vector in vectors])
