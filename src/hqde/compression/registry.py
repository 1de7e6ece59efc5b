"""Codecs by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from hqde.compression.entropy import EntropyCodec
from hqde.compression.packed import PackedCodec
from hqde.compression.packet import Packet
from hqde.compression.plain import NoCodec
from hqde.compression.ranges import Range
from hqde.errors import ConfigError, did_you_mean


class Codec(Protocol):
    """What turns a vector into a packet; ``decode`` reads the packets of all of them."""

    @property
    def name(self) -> str:
        """As ``make_codec`` takes it."""
        ...

    @property
    def is_unbiased(self) -> bool:
        """Whether the decoded vector is right on average."""
        ...

    def encode(
        self,
        vector: Tensor,
        *,
        dense: Sequence[Range] = (),
        gradient: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Packet:
        """Compress ``(n,)``; see ``PackedCodec.encode``."""
        ...


CODECS: dict[str, type[NoCodec] | type[PackedCodec] | type[EntropyCodec]] = {
    "none": NoCodec,
    "packed": PackedCodec,
    "entropy": EntropyCodec,
}


def make_codec(name: str, **options: Any) -> Codec:
    """A codec by name.

    Args:
        name: one of ``CODECS``.
        options: its settings.

    Raises:
        ConfigError: an unknown name or setting, a value out of range.

    Example:
        >>> make_codec("packed", bits=3)
        PackedCodec(bits=3, min_bits=2, max_bits=16, allocation='adaptive', ...)
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec '{name}'; {did_you_mean(name, CODECS)}")
    codec = CODECS[name]
    known = [field.name for field in fields(codec)]
    for option in options:
        if option not in known:
            cure = did_you_mean(option, known) if known else "it takes none"
            raise ConfigError(f"codec '{name}' has no setting '{option}'; {cure}")
    return codec(**options)
