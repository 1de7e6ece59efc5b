"""A model's state as one flat vector, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from hqde.errors import PreconditionError


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a model stands in a flat vector: ``vector[offset : offset + size]``."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def end(self) -> int:
        """Offset just past the last element."""
        return self.offset + self.size


@dataclass(frozen=True)
class Weights:
    """A model's state, flat.

    Attributes:
        vector: ``(d,)`` floating; the parameters first, then the floating buffers.
        integers: ``(k,)`` int64; the integer and boolean buffers (BatchNorm's batch counters).
    """

    vector: Tensor
    integers: Tensor

    def clone(self) -> Weights:
        """A copy that shares no memory."""
        return Weights(self.vector.clone(), self.integers.clone())

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors, uncompressed."""
        return self.vector.nbytes + self.integers.nbytes


@dataclass(frozen=True)
class Layout:
    """Which tensors of a model travel, and in which order.

    Parameters and floating buffers share the flat vector, so that one rule aggregates both; the boundary
    ``num_parameters`` keeps server optimizers away from buffers. Integer buffers travel beside it. Tensors
    that appear under two names (tied weights) travel once.

    Example:
        >>> layout = Layout.of(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
        >>> layout.num_parameters, layout.size, layout.num_integers
        (12, 16, 1)
    """

    parameters: tuple[Slot, ...]
    buffers: tuple[Slot, ...]
    integers: tuple[Slot, ...]
    dtype: torch.dtype = field(default=torch.float32)

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Read the layout of ``model``.

        Raises:
            PreconditionError: a complex tensor, state that is neither parameter nor buffer, or no parameters.
        """
        trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        known = trained | {name for name, _ in model.named_buffers(remove_duplicate=False)}
        state = model.state_dict(keep_vars=True)
        seen: set[int] = set()
        chosen: dict[str, list[tuple[str, Tensor]]] = {"parameters": [], "buffers": [], "integers": []}
        for name, tensor in state.items():
            if name not in known:
                raise PreconditionError(
                    f"'{name}' of {type(model).__name__} is neither a parameter nor a buffer, so it cannot "
                    f"travel between workers; keep that state in a buffer"
                )
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if tensor.is_complex():
                raise PreconditionError(
                    f"tensor '{name}' is {tensor.dtype}; complex tensors cannot be averaged by HQDE"
                )
            if not tensor.is_floating_point():
                chosen["integers"].append((name, tensor))
            else:
                chosen["parameters" if name in trained else "buffers"].append((name, tensor))
        if not chosen["parameters"]:
            raise PreconditionError(f"{type(model).__name__} has no floating parameters to train")
        floating = chosen["parameters"] + chosen["buffers"]
        wide = any(tensor.dtype == torch.float64 for _, tensor in floating)
        parameters, end = _slots(chosen["parameters"], 0)
        buffers, _ = _slots(chosen["buffers"], end)
        integers, _ = _slots(chosen["integers"], 0)
        return cls(parameters, buffers, integers, torch.float64 if wide else torch.float32)

    @property
    def num_parameters(self) -> int:
        """Elements of the vector that are parameters; the rest are buffers."""
        return self.parameters[-1].end

    @property
    def size(self) -> int:
        """Length ``d`` of the flat vector."""
        return (self.buffers or self.parameters)[-1].end

    @property
    def num_integers(self) -> int:
        """Length ``k`` of the integer vector."""
        return self.integers[-1].end if self.integers else 0

    def read(self, model: nn.Module) -> Weights:
        """Copy the state of ``model`` into a fresh flat vector on the CPU."""
        state = _state_of(model)
        parts = [state[slot.name].detach().reshape(-1) for slot in self.parameters + self.buffers]
        vector = torch.cat(parts).to(device="cpu", dtype=self.dtype)
        counts = [state[slot.name].reshape(-1).to(torch.int64) for slot in self.integers]
        integers = torch.cat(counts).cpu() if counts else torch.empty(0, dtype=torch.int64)
        return Weights(vector, integers)

    def write(self, weights: Weights, model: nn.Module, *, with_buffers: bool = True) -> None:
        """Copy flat weights into ``model`` in place; ``with_buffers=False`` leaves its buffers alone."""
        self._check(weights)
        state = _state_of(model)
        written = [(self.parameters, weights.vector[: self.num_parameters])]
        if with_buffers:
            written += [
                (self.buffers, weights.vector[self.num_parameters :]),
                (self.integers, weights.integers),
            ]
        with torch.no_grad():
            for slots, values in filter(lambda pair: pair[0], written):
                parts = values.split([slot.size for slot in slots])
                sources = [part.view(slot.shape) for slot, part in zip(slots, parts, strict=True)]
                torch._foreach_copy_([state[slot.name] for slot in slots], sources)

    def tensors(self, weights: Weights) -> Mapping[str, Tensor]:
        """The flat weights as named tensors in their own dtypes (views where the dtype allows)."""
        self._check(weights)
        floating = {s.name: (weights.vector, s) for s in self.parameters + self.buffers}
        integers = {s.name: (weights.integers, s) for s in self.integers}
        return {
            name: source[slot.offset : slot.end].view(slot.shape).to(slot.dtype)
            for name, (source, slot) in (floating | integers).items()
        }

    def _check(self, weights: Weights) -> None:
        if weights.vector.shape != (self.size,) or weights.integers.shape != (self.num_integers,):
            raise PreconditionError(
                f"weights of {tuple(weights.vector.shape)} + {tuple(weights.integers.shape)} elements do not "
                f"fit a model of ({self.size},) + ({self.num_integers},)"
            )


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as ``state_dict`` has them, in two thirds of its time."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        for own in (module._parameters, module._buffers):
            found.update((start + name, tensor) for name, tensor in own.items() if tensor is not None)
    return found


def _slots(named: list[tuple[str, Tensor]], offset: int) -> tuple[tuple[Slot, ...], int]:
    slots = []
    for name, tensor in named:
        slots.append(Slot(name, tuple(tensor.shape), tensor.dtype, offset))
        offset += tensor.numel()
    return tuple(slots), offset
