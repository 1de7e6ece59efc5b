"""How an ensemble's numbers are stored, by kind of tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hqde.compression import Packet
from hqde.ensemble.members import Member
from hqde.ensemble.packed_weights import PackedWeights

HALVED = "small, as float16"
KEPT = "as they were"


@dataclass
class Storage:
    """Tensors of one kind, over all members.

    Attributes:
        kind: class of the module that a quantised tensor belongs to, or one of ``HALVED``, ``KEPT``.
        tensors, numbers: how many; tied tensors of a packed model count once.
        nbytes: what they take in the members' files, scales and headers of packets included.
    """

    kind: str
    tensors: int = 0
    numbers: int = 0
    nbytes: int = 0

    @property
    def bits(self) -> float:
        """Bits per number, everything counted."""
        return 8.0 * self.nbytes / self.numbers if self.numbers else 0.0


def describe_storage(members: Sequence[Member]) -> list[Storage]:
    """What the members' files spend on which kind of tensor; the largest first.

    >>> from hqde.models import ModelSpec
    >>> spec = ModelSpec("torch.nn:Linear", {"in_features": 512, "out_features": 3})
    >>> describe_storage([Member(0, spec, spec.build())])
    [Storage(kind='as they were', tensors=2, numbers=1539, nbytes=6156)]
    """
    kinds: dict[str, Storage] = {}
    for member in members:
        packed, model = member.packed or PackedWeights({}, {}), member.model
        for name, packet in packed.quantised.items():
            _add(kinds, _owner(model, name), packet)
        if packed.half is not None:
            _add(kinds, HALVED, packed.half, tensors=len(packed.halved))
        for name, tensor in model.state_dict().items():
            if name not in packed.names and isinstance(tensor, Tensor):
                _add(kinds, KEPT, tensor)
    return sorted(kinds.values(), key=lambda row: (-row.numbers, row.kind))


def _add(kinds: dict[str, Storage], kind: str, held: Packet | Tensor, *, tensors: int = 1) -> None:
    row = kinds.setdefault(kind, Storage(kind))
    row.tensors += tensors
    row.numbers += held.count if isinstance(held, Packet) else held.numel()
    row.nbytes += held.nbytes


def _owner(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__
