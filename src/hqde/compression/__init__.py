"""Vectors as fewer bytes: what matters gets the bits, and what is counted is what travels."""

from hqde.compression.allocation import allocate_bits, linear_bits
from hqde.compression.entropy import EntropyCodec
from hqde.compression.feedback import encode_step, with_feedback
from hqde.compression.importance import IMPORTANCES, block_spread, magnitude_score
from hqde.compression.links import Compression, Downlink, Uplink
from hqde.compression.packed import PackedCodec
from hqde.compression.packet import Packet, decode
from hqde.compression.packing import BLOCK, pack, pack_blocks, unpack, unpack_blocks
from hqde.compression.plain import NoCodec
from hqde.compression.quantize import dequantize_blocks, quantize_blocks
from hqde.compression.quantizer import AdaptiveQuantizer
from hqde.compression.ranges import Stream, dense_ranges
from hqde.compression.registry import CODECS, Codec, make_codec

__all__ = [
    "BLOCK",
    "CODECS",
    "IMPORTANCES",
    "AdaptiveQuantizer",
    "Codec",
    "Compression",
    "Downlink",
    "EntropyCodec",
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
    "encode_step",
    "linear_bits",
    "magnitude_score",
    "make_codec",
    "pack",
    "pack_blocks",
    "quantize_blocks",
    "unpack",
    "unpack_blocks",
    "with_feedback",
]
