"""Vectors as fewer bytes: what matters gets the bits, and what is counted is what travels."""

from hqde.compression.allocation import allocate_bits, linear_bits
from hqde.compression.feedback import with_feedback
from hqde.compression.importance import IMPORTANCES, block_spread, magnitude_score
from hqde.compression.links import Compression, Downlink, Uplink
from hqde.compression.packed import PackedCodec
from hqde.compression.packet import Packet, decode
from hqde.compression.packing import BLOCK, pack, pack_blocks, unpack, unpack_blocks
from hqde.compression.plain import NoCodec
from hqde.compression.quantize import dequantize_blocks, quantize_blocks
from hqde.compression.ranges import Stream, dense_ranges

__all__ = [
    "BLOCK",
    "IMPORTANCES",
    "Compression",
    "Downlink",
    "NoCodec",
    "PackedCodec",
    "Packet",
    "Stream",
    "Uplink",
    "allocate_bits",
    "block_spread",
    "decode",
    "dense_ranges",
    "dequantize_blocks",
    "linear_bits",
    "magnitude_score",
    "pack",
    "pack_blocks",
    "quantize_blocks",
    "unpack",
    "unpack_blocks",
    "with_feedback",
]


def make_codec(name, **o):
    return {"packed": PackedCodec}[name](**o)


from hqde.compression.plain import NoCodec as Codec  # tmp
