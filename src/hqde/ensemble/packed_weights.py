"""A model's weights as packets: what a compressed member is saved as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hqde.compression import PackedCodec, Packet, decode
from hqde.errors import HqdeError, NonFiniteError, PacketError

SMALLEST = 1024
"""Elements from which a parameter of two or more dimensions is quantised."""

HALVED = "*.packet"
"""The tensor in a member's file that holds all the halved tensors."""

SUFFIX = ".packet"
FLOATS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}  # as safetensors calls them
PIECE = 2**19  # values decoded at a time: what decoding needs for itself stays small, and in a core's cache
RELATIVE_ERROR = 2.0**-10  # what a running mean or variance may lose
CURE = "copy it again or compress it anew"

Shape = tuple[int, ...]
Signature = Mapping[str, tuple[Shape, torch.dtype]]


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Tensors of one model, quantised or halved; whatever is in neither is kept as it is.

    Args:
        quantised: tensor name to the packet of its values, flattened.
        shapes: of every tensor in ``quantised`` and ``halved``.
        halved: names of small float32 tensors, which share the packet ``half``, one dense range for each:
            float16 scaled by the largest magnitude.
        half: that packet, or None where there are none.
        aliases: further names of a quantised tensor (tied weights), which are not stored again.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> packed = pack_weights(model, {"0.weight": 4.0})
        >>> packed.halved, packed.nbytes
        (('0.bias', '2.bias', '2.weight'), 1538)
        >>> packed.decode()["0.weight"].shape
        torch.Size([32, 64])
    """

    quantised: Mapping[str, Packet]
    shapes: Mapping[str, Shape]
    halved: tuple[str, ...] = ()
    half: Packet | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all packets."""
        return sum(len(payload) for payload in self.to_tensors().values())

    @property
    def names(self) -> frozenset[str]:
        """The tensors that it holds, aliases included."""
        return frozenset([*self.quantised, *self.halved, *self.aliases])

    def decode_one(self, name: str, *, device: torch.device | str = "cpu") -> Tensor:
        """A quantised tensor in its shape, or an alias of it.

        Raises:
            PacketError: the packet is damaged.
        """
        name = self.aliases.get(name, name)
        shape, packet = self.shapes[name], self.quantised[name]
        count = _count(shape)
        if count <= PIECE:
            return decode(packet, expected_count=count, device=device).view(shape)
        values = torch.empty(count, dtype=packet.header.dtype, device=device)
        for start in range(0, count, PIECE):
            stop = min(start + PIECE, count)
            values[start:stop] = decode(packet.cut(start, stop), expected_count=stop - start, device=device)
        return values.view(shape)

    def decode_halved(self) -> dict[str, Tensor]:
        """The small tensors, on the CPU.

        Raises:
            PacketError: the packet is damaged or holds tensors of other sizes.
        """
        if self.half is None:
            return {}
        sizes = [_count(self.shapes[name]) for name in self.halved]
        found = [stop - start for start, stop in self.half.header.stream.dense]
        if found != sizes:
            raise PacketError(
                f"the packet of small tensors holds sizes {found[:4]} … instead of {sizes[:4]} …"
            )
        parts = decode(self.half, expected_count=sum(sizes)).split(sizes)
        return {
            name: part.clone().view(self.shapes[name]) for name, part in zip(self.halved, parts, strict=True)
        }

    def decode(self) -> dict[str, Tensor]:
        """Every tensor by name, on the CPU.

        Raises:
            PacketError: a packet is damaged.
        """
        state = {name: self.decode_one(name) for name in self.quantised}
        state |= {name: state[first] for name, first in self.aliases.items()}
        return state | self.decode_halved()

    def changed(self, state: Mapping[str, Tensor]) -> str | None:
        """The first tensor of ``state`` that is not, bit for bit, what the packets hold; None if all are."""
        small = self.decode_halved()
        for name in sorted(self.names):
            own = small[name] if name in small else self.decode_one(name)
            found = state.get(name)
            if found is None or found.dtype != own.dtype or not torch.equal(found.detach().cpu(), own):
                return name
        return None

    def to_tensors(self) -> dict[str, Tensor]:
        """What goes into the member's file: uint8 vectors by name."""
        tensors = {name + SUFFIX: packet.payload for name, packet in self.quantised.items()}
        return tensors if self.half is None else {**tensors, HALVED: self.half.payload}

    def to_dict(self) -> dict[str, Any]:
        """What goes into the manifest: format and shape of each quantised tensor, and the aliases.

        The halved tensors are all those that stand nowhere else, sorted by name.
        """
        described = {
            name: f"{FLOATS[packet.header.dtype]} {'x'.join(map(str, self.shapes[name]))}"
            for name, packet in self.quantised.items()
        }
        return described | {name: f"= {first}" for name, first in self.aliases.items()}


def read_packed(
    described: Mapping[str, str], tensors: Mapping[str, Tensor], signature: Signature
) -> tuple[PackedWeights, dict[str, Tensor]]:
    """Undo ``to_tensors`` and ``to_dict``, and check them against the model; nothing is decoded.

    Args:
        described: from the manifest.
        tensors: all of a member's file.
        signature: shape and number format of each tensor of the model.

    Returns:
        the packed weights, and the tensors of the file that are kept as they are.

    Raises:
        PacketError: packets are missing, damaged or too many, or do not fit the model.
    """
    if not isinstance(described, Mapping) or not all(isinstance(text, str) for text in described.values()):
        raise PacketError(f"the manifest does not say which tensors are packed: {CURE}")
    rest = dict(tensors)
    quantised, shapes, aliases = {}, {}, {}
    for name, text in described.items():
        shape, dtype = _known(name, signature)
        if text.startswith("= "):
            aliases[name] = text.removeprefix("= ")
            continue
        if text != f"{FLOATS.get(dtype)} {'x'.join(map(str, shape))}":
            raise PacketError(f"{name} is {text}, expected {dtype} of shape {shape}: {CURE}")
        shapes[name], quantised[name] = shape, _take(rest, name + SUFFIX)
        _check(quantised[name], name, _count(shape), dtype)
    for name, first in aliases.items():
        if first not in quantised or signature[name] != signature[first]:
            raise PacketError(f"{name} is said to be the same as {first}, which does not fit: {CURE}")
    twice = sorted(rest.keys() & described.keys())
    if twice:
        raise PacketError(f"{twice[0]} is there twice: {CURE}")
    half = _take(rest, HALVED) if HALVED in rest else None
    if half is None:
        return PackedWeights(quantised, shapes, aliases=aliases), rest
    halved = tuple(sorted(signature.keys() - described.keys() - rest.keys()))
    strange = [name for name in halved if signature[name][1] != torch.float32]
    if strange:
        raise PacketError(f"{strange[0]} is missing: {CURE}")
    shapes |= {name: signature[name][0] for name in halved}
    _check(half, "the packet of small tensors", sum(_count(shapes[name]) for name in halved), torch.float32)
    return PackedWeights(quantised, shapes, halved, half, aliases), rest


def quantisable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are worth quantising: two dimensions or more, at least 1024 elements, floating.

    Tied weights are listed once, under their first name.

    >>> sorted(quantisable(nn.Sequential(nn.Embedding(100, 32), nn.LayerNorm(32), nn.Linear(32, 8))))
    ['0.weight']
    """
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and parameter.numel() >= SMALLEST and parameter.dtype in FLOATS
    }


def pack_weights(model: nn.Module, bits: Mapping[str, float]) -> PackedWeights:
    """Quantise the tensors named in ``bits`` and halve the small ones that bear it.

    Small float32 parameters become scaled float16. So do the running statistics of normalisations, unless a
    value would change by more than 1 part in 1024 of itself; other buffers only if nothing changes at all.

    Args:
        model: left as it is.
        bits: average width of each tensor of ``quantisable``, 2 to 16; it adapts from block to block.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity.
    """
    tensors = quantisable(model)
    quantised, shapes = {}, {}
    for name, average in bits.items():
        flat = tensors[name].cpu().reshape(-1)
        quantised[name] = PackedCodec(bits=average).encode(flat)
        shapes[name] = tuple(tensors[name].shape)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    named = dict(model.named_parameters(remove_duplicate=False))
    aliases = {
        name: first[id(parameter)]
        for name, parameter in named.items()
        if first[id(parameter)] in quantised and name != first[id(parameter)]
    }
    return pack_small(model, PackedWeights(quantised, shapes, aliases=aliases))


def pack_small(model: nn.Module, packed: PackedWeights) -> PackedWeights:
    """The same quantised tensors, with the model's small ones as they are now; see ``pack_weights``."""
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    small: dict[str, Tensor] = {}
    for name, tensor in sorted(model.state_dict().items()):
        if name in packed.quantised or name in packed.aliases or not isinstance(tensor, Tensor):
            continue
        if tensor.dtype == torch.float32 and tensor.numel() > 0 and bool(torch.isfinite(tensor).all()):
            owner = model.get_submodule(name.rpartition(".")[0])
            if name in trained or _bears_halving(tensor, exactly=not isinstance(owner, _NormBase)):
                small[name] = tensor.detach().cpu()
    shapes = {name: packed.shapes[name] for name in packed.quantised}
    shapes |= {name: tuple(tensor.shape) for name, tensor in small.items()}
    return replace(packed, shapes=shapes, halved=tuple(small), half=_halve(list(small.values())))


def refuse_nonfinite(model: nn.Module, *, member_id: int) -> None:
    """Refuse a model whose parameters hold NaN or infinity (NonFiniteError)."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NonFiniteError(
                f"member {member_id}: {name} holds NaN or infinity: leave the member out or retrain it."
            )


def _halve(tensors: list[Tensor]) -> Packet | None:
    if not tensors:
        return None
    ranges, start = [], 0
    for tensor in tensors:
        ranges.append((start, start + tensor.numel()))
        start += tensor.numel()
    return PackedCodec().encode(torch.cat([tensor.reshape(-1) for tensor in tensors]), dense=ranges)


def _bears_halving(tensor: Tensor, *, exactly: bool) -> bool:
    packet = _halve([tensor.detach().cpu()])
    assert packet is not None
    flat = tensor.detach().cpu().reshape(-1).double()
    lost = (decode(packet).double() - flat).abs()
    return bool((lost <= flat.abs() * (0.0 if exactly else RELATIVE_ERROR)).all())


def _take(rest: dict[str, Tensor], name: str) -> Packet:
    if name not in rest:
        raise PacketError(f"{name} is missing: {CURE}")
    return Packet(rest.pop(name))


def _check(packet: Packet, name: str, count: int, dtype: torch.dtype) -> None:
    try:
        header, _ = packet.header, packet.body
    except HqdeError as problem:
        raise PacketError(f"{name}: {problem}") from problem
    if header.count != count or header.dtype != dtype:
        raise PacketError(
            f"{name} is packed as {header.count} values of {header.dtype}, expected {count} of {dtype}: "
            f"{CURE}"
        )


def _known(name: str, signature: Signature) -> tuple[Shape, torch.dtype]:
    if name not in signature:
        raise PacketError(
            f"{name} is packed and unknown to the model: load it with the class it was saved with"
        )
    return signature[name]


def _count(shape: Shape) -> int:
    return int(torch.Size(shape).numel())
