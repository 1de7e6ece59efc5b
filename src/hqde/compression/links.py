"""How the vectors of a run travel: which codec on which way, in which round, with or without feedback."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hqde.compression.entropy import EntropyCodec
from hqde.compression.packed import PackedCodec
from hqde.compression.packet import Packet
from hqde.compression.registry import Codec
from hqde.errors import ConfigError


@dataclass(frozen=True)
class Uplink:
    """How a worker encodes the delta of one round.

    Attributes:
        codec: encodes it.
        feedback: what the codec leaves out of one round's delta is added to the next round's.
        fresh: forget first what is owed from earlier rounds.
        smallest: tensors with fewer elements stay dense.
    """

    codec: Codec
    feedback: bool
    fresh: bool
    smallest: int


@dataclass(frozen=True)
class Downlink:
    """How a worker makes a round's start: of the one that it still holds, by adding what a packet holds.

    Attributes:
        packet: the encoded difference; ``None`` where it has been taken out to travel by itself.
        base_round: the round whose start it is added to; 0 for a packet that is the start.
    """

    packet: Packet | None
    base_round: int

    @property
    def nbytes(self) -> int:
        """Bytes of the packet."""
        return 0 if self.packet is None else self.packet.nbytes


@dataclass(frozen=True)
class Compression:
    """What travels how, round by round.

    Deltas go up and weights come down; both ways are lossy when there is a codec. With ``feedback`` a worker
    adds what its packet left out to the next round's delta, and the group does the same for what it sends
    down (Seide et al. 2014; Karimireddy et al. 2019; both directions: Tang et al. 2019).

    Args:
        codec: of deltas and weights, with a budget of ``bits``; ``None`` sends both as they are.
        downlink: whether weights are encoded too; without it, only deltas are.
        feedback: see above; not with a codec that rounds stochastically.
        warmup_rounds: rounds at the start in which nothing is encoded.
        final_bits: the codec's bits go from its own at the first encoded round to these at the end of the
            run, in a straight line; ``None`` keeps them.
        smallest: tensors with fewer elements stay dense, as do biases, normalisations and buffers.

    Raises:
        ConfigError: a number is out of range, feedback meets stochastic rounding, or gradients are asked for.

    Example:
        >>> from hqde.compression import PackedCodec
        >>> compression = Compression(PackedCodec(bits=8), final_bits=4, warmup_rounds=2)
        >>> compression.codec_at(2, 0.1), compression.codec_at(3, 0.5).bits
        (None, 6.0)
    """

    codec: PackedCodec | EntropyCodec | None = None
    downlink: bool = True
    feedback: bool = True
    warmup_rounds: int = 0
    final_bits: float | None = None
    smallest: int = 512

    def __post_init__(self) -> None:
        for name, value in (("warmup_rounds", self.warmup_rounds), ("smallest", self.smallest)):
            if value < 0:
                raise ConfigError(f"compression.{name} must not be negative, got {value}")
        if self.codec is None:
            return
        if self.feedback and self.codec.is_unbiased:
            raise ConfigError(
                "error feedback is for rounding to the nearest level, stochastic rounding needs none: "
                "set compression.feedback = false, or compression.options.rounding = 'nearest'"
            )
        if self.codec.importance == "fisher":
            raise ConfigError(
                "importance 'fisher' needs gradients, and there are none: take 'variance' or 'magnitude'"
            )
        if self.final_bits is not None:
            replace(self.codec, bits=self.final_bits)  # refuses what is out of range

    def codec_at(self, round_index: int, progress: float) -> PackedCodec | EntropyCodec | None:
        """The codec of a round, ``progress`` being the fraction of the run that is over at its start."""
        if self.codec is None or round_index <= self.warmup_rounds:
            return None
        if self.final_bits is None:
            return self.codec
        bits = self.codec.bits + (self.final_bits - self.codec.bits) * progress
        return replace(self.codec, bits=bits)
