"""Damaged and forged packets: refused, or decoded to finite numbers of the right shape, in bounded memory."""

from __future__ import annotations

import pickle
import resource
import struct
import zlib

import numpy as np
import pytest
import torch

from hqde.compression import EntropyCodec, NoCodec, PackedCodec, Packet, decode
from hqde.errors import PacketError


def packets() -> list[Packet]:
    """One of every kind, with every section that a packet can have."""
    draws = torch.Generator().manual_seed(0)
    vector = torch.randn(6000, generator=draws) * torch.exp(
        torch.randn(30, generator=draws)
    ).repeat_interleave(200)
    vector[77] = 500.0
    gradient, dense = torch.randn(6000, generator=draws), ((10, 20), (3000, 3100))
    made = [
        NoCodec().encode(vector[:300]),
        NoCodec().encode(vector[:300].bfloat16()),
        PackedCodec(bits=3, allocation="uniform").encode(vector, dense=dense),
        PackedCodec(bits=12, allocation="uniform").encode(vector[:500].half()),
        PackedCodec(bits=4).encode(vector, dense=dense),
        EntropyCodec(bits=1, importance="fisher").encode(vector, dense=dense, gradient=gradient),
        EntropyCodec(bits=3).encode(vector.double()),
        EntropyCodec(bits=1, stage="ans").encode(vector, dense=dense),
        EntropyCodec(bits=4, stage="ans", importance="magnitude").encode(vector),
        PackedCodec().encode(torch.zeros(0)),
    ]
    return [*made, *(packet.cut(150, 290) for packet in made[:-1])]


def repaired(data: bytearray) -> bytearray:
    """The same bytes with a length and a checksum that fit, as a forger would send them."""
    if len(data) >= 36:
        struct.pack_into("<Q", data, 8, len(data))
        struct.pack_into("<I", data, 32, zlib.crc32(data[36:], zlib.crc32(data[:32])))
    return data


def altered(data: bytes, draws: np.random.Generator) -> bytearray:
    """A few bytes changed, cut off, or added."""
    changed = bytearray(data)
    kind = draws.integers(8)
    if kind == 0:
        del changed[int(draws.integers(len(changed))) :]
    elif kind == 1:
        changed += draws.bytes(int(draws.integers(1, 40)))
    elif kind == 2:
        at = int(draws.integers(len(changed)))
        del changed[at : at + int(draws.integers(1, 20))]
    else:
        # Half of the changes go where sizes and tables stand.
        end = len(changed) if kind < 5 else min(len(changed), 120)
        for at in draws.integers(end, size=int(draws.integers(1, 9))).tolist():
            changed[at] = int(draws.choice([0, 1, 127, 128, 255, int(draws.integers(256))]))
    return repaired(changed) if draws.integers(4) else changed


def attack(rounds: int) -> tuple[int, int]:
    """How many altered packets were refused, and how many decoded."""
    draws = np.random.default_rng(0)
    originals = [packet.to_bytes() for packet in packets()]
    refused = decoded = 0
    for index in range(rounds):
        data = altered(originals[index % len(originals)], draws)
        try:
            packet = Packet.from_bytes(data)
            values = decode(packet)
            part = decode(packet.cut(0, 1)) if packet.count else values
        except PacketError:
            refused += 1
            continue
        assert values.shape == (packet.count,)
        assert torch.isfinite(values.float()).all()
        assert torch.equal(part, values[:1])
        assert packet.count <= 4096 * packet.nbytes
        decoded += 1
    return refused, decoded


@pytest.mark.parametrize("rounds", [4000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.timeout(900)
def test_every_altered_packet_is_refused_or_decodes_to_finite_numbers(rounds: int) -> None:
    attack(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, decoded = attack(rounds)
    assert refused + decoded == rounds
    assert refused > rounds // 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("index", range(len(packets())))
def test_any_single_change_without_a_repair_is_noticed(index: int) -> None:
    data = packets()[index].to_bytes()
    draws = np.random.default_rng(index)
    for at in draws.integers(len(data), size=60).tolist():
        changed = bytearray(data)
        changed[at] ^= int(draws.integers(1, 256))
        with pytest.raises(PacketError):
            decode(Packet.from_bytes(changed))
    for end in draws.integers(len(data), size=20).tolist():
        with pytest.raises(PacketError):
            decode(Packet.from_bytes(data[:end]))


def test_forged_scales_and_counts_are_refused_before_anything_is_allocated() -> None:
    vector = torch.ones(1280)
    data = bytearray(PackedCodec(bits=4, allocation="uniform").encode(vector).to_bytes())
    scales = len(data) - 1 - 2 * 10
    for forged in (0x7F80, 0x7FC0, 0xFF80, 0xBF80, 0x7F7F):  # inf, NaN, -inf, -1, the largest
        struct.pack_into("<H", data, scales, forged)
        with pytest.raises(PacketError, match="scale that is negative, NaN or too large"):
            decode(Packet.from_bytes(repaired(data)))
    for codec in (PackedCodec(), EntropyCodec(), NoCodec()):
        for count in (2**62, 10**9, 4096 * 60):
            data = bytearray(codec.encode(torch.zeros(256)).to_bytes())
            struct.pack_into("<Q", data, 16, count)
            with pytest.raises(PacketError):
                decode(Packet.from_bytes(repaired(data)))
            with pytest.raises(PacketError):
                decode(Packet.from_bytes(repaired(data)), expected_count=count)
    data = bytearray(NoCodec().encode(vector).to_bytes())
    data[6] = 9
    with pytest.raises(PacketError, match="names codec 9"):
        decode(Packet.from_bytes(repaired(data)))


def test_a_pickled_packet_is_checked_again() -> None:
    packet = PackedCodec().encode(torch.ones(300))
    decode(packet)
    data = pickle.dumps(packet)
    at = data.index(packet.to_bytes()[:40]) + packet.nbytes - 3
    damaged = pickle.loads(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(PacketError, match="altered"):
        decode(damaged)
