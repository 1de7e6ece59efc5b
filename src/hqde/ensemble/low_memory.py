"""Weights that stay packed: a layer's are decoded when it asks for them, and gone when it is done."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hqde.ensemble.packed_weights import PackedWeights
from hqde.errors import PreconditionError


class PackedParameter:
    """Stands in a module's place of a parameter.

    Args:
        packed: where its values are.
        name: of the tensor there.
    """

    def __init__(self, packed: PackedWeights, name: str) -> None:
        self._packed, self._name = packed, name
        self._live: weakref.ref[nn.Parameter] | None = None
        self._device = torch.device("cpu")

    def move(self, device: torch.device) -> None:
        """Decode on another device from now on."""
        self._device, self._live = device, None

    def decode(self) -> nn.Parameter:
        """The parameter; the same object as long as somebody holds it."""
        found = self._live() if self._live is not None else None
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                values = self._packed.decode_one(self._name, device=self._device)
                found = nn.Parameter(values, requires_grad=False)
            self._live = weakref.ref(found)
        return found


class DecodingParameters(dict[str, Any]):
    """A module's table of parameters in which some are decoded at each look-up.

    So whoever asks the module for its weight gets it, forward or not, and it is freed with the last
    reference. A copy or a pickle of it holds ordinary parameters.
    """

    def __getitem__(self, name: str) -> Any:
        return _decoded(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict, decoded."""
        return _decoded(super().get(name, default))

    def __iter__(self) -> Iterator[str]:  # so that dict(self) asks for each item
        return super().__iter__()

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Name and parameter, decoded one at a time."""
        return ((name, self[name]) for name in list(self))

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        """The parameters, decoded one at a time."""
        return (self[name] for name in list(self))

    def copy(self) -> dict[str, Any]:
        """An ordinary dict of decoded parameters."""
        return dict(self.items())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.items()),)

    def packed(self) -> Iterator[PackedParameter]:
        """What is decoded at each look-up."""
        return (value for value in super().values() if isinstance(value, PackedParameter))


class WithoutDraws(TorchFunctionMode):
    """A context in which starting weights are not drawn: memory set aside for them stays untouched."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave out the drawing, by tensors or by ``torch.nn.init`` (which calls theirs out of sight)."""
        named = kwargs or {}
        drawing = func in (torch.Tensor.uniform_, torch.Tensor.normal_)
        if drawing or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def keep_packed(model: nn.Module, packed: PackedWeights) -> frozenset[str]:
    """Put packets in place of a model's quantised parameters; the model can only predict from then on.

    A parameter that something besides its module's table refers to (the flat weights of an RNN) is filled
    with its decoded values instead. The rest of the model has to be loaded already.

    Args:
        model: changed in place.
        packed: its weights.

    Returns:
        names of the tensors that stay packed.
    """
    handles = {name: PackedParameter(packed, name) for name in packed.quantised}
    watched: dict[str, weakref.ref[nn.Parameter]] = {}
    for name in [*packed.quantised, *packed.aliases]:
        owner, key = _place(model, name)
        table = owner._parameters
        if not isinstance(table, DecodingParameters):
            table = owner.__dict__["_parameters"] = DecodingParameters(table)
        old = dict.__getitem__(table, key)
        watched[name] = weakref.ref(old)
        table[key] = handles[packed.aliases.get(name, name)]
        del old
    for name, reference in watched.items():
        kept = reference()
        if kept is not None:
            with torch.no_grad():
                kept.copy_(packed.decode_one(name))
            owner, key = _place(model, name)
            owner._parameters[key] = kept
    model.register_load_state_dict_pre_hook(_refuse_loading)
    return frozenset(name for name, reference in watched.items() if reference() is None)


def move_model(model: nn.Module, device: torch.device | str) -> None:
    """Move a model in place; packed weights are decoded where the rest of it is."""
    model.to(device)
    for module in model.modules():
        if isinstance(module._parameters, DecodingParameters):
            for parameter in module._parameters.packed():
                parameter.move(torch.device(device))


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, PackedParameter) else value


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner), key


def _refuse_loading(*_: Any) -> NoReturn:
    raise PreconditionError("a model whose weights stay packed takes no others: load it without low_memory.")
