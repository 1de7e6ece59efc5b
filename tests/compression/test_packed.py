"""Packed packets: what comes back, what a cut is, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hqde.compression import PackedCodec, Packet, decode
from hqde.errors import ConfigError, NonFiniteError, PacketError, PreconditionError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def some_vector(count: int, seed: int, *, uneven: bool = True) -> Tensor:
    """Numbers whose size changes from block to block, as a model's does from layer to layer."""
    draws = torch.Generator().manual_seed(seed)
    sizes = torch.exp(2.0 * torch.randn(count // 200 + 1, generator=draws)).repeat_interleave(200)[:count]
    return torch.randn(count, generator=draws) * (sizes if uneven else 1.0)


@st.composite
def ranges_within(draw: st.DrawFn, count: int) -> tuple[tuple[int, int], ...]:
    """Sorted disjoint ranges."""
    ends = sorted(draw(st.sets(st.integers(0, count), max_size=8)))
    return tuple(zip(ends[::2], ends[1::2], strict=False))


@settings(max_examples=150)
@given(
    st.integers(1, 16), st.integers(0, 1500), st.sampled_from(DTYPES), st.integers(0, 99), st.data(),
    st.sampled_from(["adaptive", "uniform", "linear"]),
)  # fmt: skip
def test_every_width_length_and_dtype_comes_back_within_half_a_step(
    bits: int, count: int, dtype: torch.dtype, seed: int, data: st.DataObject, allocation: str
) -> None:
    vector = some_vector(count, seed).to(dtype)
    dense = data.draw(ranges_within(count))
    before = vector.clone()
    codec = PackedCodec(
        bits=bits, min_bits=max(1, bits - 2), max_bits=min(16, bits + 3), allocation=allocation
    )  # type: ignore[arg-type]
    packet = codec.encode(vector, dense=dense)
    decoded = decode(packet, expected_count=count)
    assert torch.equal(vector, before)
    assert decoded.shape == vector.shape
    assert decoded.dtype == dtype
    assert torch.isfinite(decoded.float()).all()
    assert packet.count == count
    assert packet.nbytes == len(packet.to_bytes())
    assert torch.equal(codec.encode(vector, dense=dense).payload, packet.payload)
    for start, stop in dense:
        part = vector[start:stop].double()
        bound = 2**-11 if dtype != torch.bfloat16 else 2**-8
        assert (decoded[start:stop].double() - part).abs().max() <= part.abs().max() * bound
    quantised = torch.ones(count, dtype=torch.bool)
    for start, stop in dense:
        quantised[start:stop] = False
    if bits >= 7 and bool(quantised.any()):  # then nothing clips in any of the blocks
        error = (decoded.double() - vector.double())[quantised].abs().max()
        bound = 0.51 / (2 ** (codec.min_bits - 1) - 1) + torch.finfo(dtype).eps
        assert error <= vector[quantised].abs().max().double() * bound


@settings(max_examples=100)
@given(st.integers(1, 16), st.integers(1, 1500), st.booleans(), st.data())
def test_a_cut_is_the_slice_to_the_bit_and_can_be_cut_again(
    bits: int, count: int, mixed: bool, data: st.DataObject
) -> None:
    vector = some_vector(count, bits)
    dense = data.draw(ranges_within(count))
    codec = (
        PackedCodec(bits=bits, min_bits=1)
        if mixed
        else PackedCodec(bits=bits, allocation="uniform", rounding="nearest")
    )
    packet = codec.encode(vector, dense=dense)
    whole = decode(packet)
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    part = packet.cut(start, stop)
    assert torch.equal(decode(part, expected_count=stop - start), whole[start:stop])
    first = data.draw(st.integers(0, stop - start - 1))
    again = Packet.from_bytes(part.to_bytes()).cut(first, stop - start)
    assert torch.equal(decode(again), whole[start + first : stop])


def test_a_cut_copies_the_blocks_touched_and_no_more() -> None:
    packet = PackedCodec(bits=4, allocation="uniform").encode(some_vector(128 * 1000, 0))
    empty = packet.cut(0, 1).nbytes - 64 - 2
    assert packet.cut(128 * 10, 128 * 20).nbytes == empty + 10 * (64 + 2)
    assert packet.cut(128 * 10 + 1, 128 * 20 + 1).nbytes == empty + 11 * (64 + 2)
    with pytest.raises(PreconditionError, match=r"cannot cut \[5, 5\)"):
        packet.cut(5, 5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8, 12, 16])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_zeros_are_exact_and_any_size_of_number_is_borne(bits: int, rounding: str) -> None:
    codec = PackedCodec(bits=bits, allocation="uniform", rounding=rounding)  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(0)
    zeros = torch.zeros(500)
    assert torch.equal(decode(codec.encode(zeros, generator=draws)), zeros)
    for size in (1e-45, 1e-40, 1e-38, 1e-20, 1.0, 1e30, 3.4e38):
        for shape in (torch.ones(300), torch.linspace(-1, 1, 300), torch.eye(300)[7]):
            vector = shape * size
            decoded = decode(codec.encode(vector, generator=draws))
            assert torch.isfinite(decoded).all()
            bound = {1: 2.0, 2: 1.0, 3: 0.8, 4: 0.4}.get(bits, 2.1 / 2**bits) + 2**-8 * (size > 3e38)
            if rounding == "stochastic":
                bound *= 2.1
            assert (decoded - vector).abs().max() <= max(bound * size, 1e-40)
    wide = torch.tensor([1e30, -1e-30, 5.0], dtype=torch.float64)
    assert decode(codec.encode(wide, generator=draws)).dtype == torch.float64


def test_the_largest_half_does_not_become_infinite() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        vector = torch.full((256,), torch.finfo(dtype).max, dtype=dtype)
        vector[::3] = 0
        for bits in (2, 4, 6):
            assert torch.isfinite(decode(PackedCodec(bits=bits, allocation="uniform").encode(vector))).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 8, 16])
def test_stochastic_rounding_is_unbiased(bits: int) -> None:
    vector = torch.tensor([-1.0, -0.7, -0.3, -0.011, 0.0, 0.123, 0.4999, 1.0]).repeat(16)
    codec = PackedCodec(bits=bits, allocation="uniform", rounding="stochastic")
    draws = torch.Generator().manual_seed(bits)
    many = decode(codec.encode(vector.repeat(4000), generator=draws)).view(-1, 8).double()
    deviation = many.std(dim=0) / math.sqrt(len(many))
    assert ((many.mean(dim=0) - vector[:8]).abs() <= 3 * deviation + 1e-7).all()


def test_stochastic_rounding_follows_its_generator_alone() -> None:
    codec = PackedCodec(bits=3, rounding="stochastic")
    vector = some_vector(100_000, 1)
    first, second = (codec.encode(vector, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.payload, second.payload)
    with pytest.raises(ConfigError, match="needs generator="):
        codec.encode(vector)


@pytest.mark.parametrize("codec", [PackedCodec(bits=4, allocation="uniform"), PackedCodec(bits=3)])
def test_the_bits_depend_on_neither_threads_nor_chunks(
    codec: PackedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = some_vector(200_001, 3)
    packet = codec.encode(vector)
    decoded = decode(packet)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(codec.encode(vector).payload, packet.payload)
        assert torch.equal(decode(packet), decoded)
    finally:
        torch.set_num_threads(threads)
    for module in ("packed_body", "importance"):
        monkeypatch.setattr(f"hqde.compression.{module}.CHUNK", 7)
    assert torch.equal(codec.encode(vector).payload, packet.payload)
    assert torch.equal(decode(packet), decoded)


@pytest.mark.parametrize(("bits", "most"), [(2, 0.9), (3, 0.9), (4, 0.9), (6, 0.9), (8, 0.9)])
def test_gap_to_the_gaussian_bound(bits: int, most: float) -> None:
    vector = some_vector(2**17, 0, uneven=False)
    packet = PackedCodec(bits=bits, allocation="uniform").encode(vector)
    error = float((decode(packet) - vector).double().square().mean() / vector.double().square().mean())
    assert 8 * packet.nbytes / len(vector) + 0.5 * math.log2(error) <= most


def test_adaptive_bits_beat_equal_bits_where_sizes_differ() -> None:
    vector = some_vector(60_000, 4)
    errors = {}
    for allocation in ("adaptive", "linear", "uniform"):
        packet = PackedCodec(bits=4, allocation=allocation).encode(vector)  # type: ignore[arg-type]
        assert packet.nbytes <= len(vector) * (4 + 0.125 + 0.032 * (allocation != "uniform")) / 8 + 200
        errors[allocation] = float((decode(packet) - vector).square().sum())
    assert errors["adaptive"] < 0.25 * errors["uniform"]


@pytest.mark.parametrize(("importance", "ratio"), [("magnitude", 0.95), ("fisher", 0.7)])
def test_bits_follow_the_gradient(importance: str, ratio: float) -> None:
    vector = some_vector(128 * 64, 0, uneven=False)
    gradient = torch.ones_like(vector)
    gradient[: 128 * 32] = 10.0
    packet = PackedCodec(bits=4, importance=importance).encode(vector, gradient=gradient)  # type: ignore[arg-type]
    error = (decode(packet) - vector).square().view(2, -1).sum(dim=1)
    assert error[0] < ratio * error[1]


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    for options, words in [
        ({"bits": 0}, "1 to 16, got 0"),
        ({"bits": 17}, "1 to 16, got 17"),
        ({"bits": 1.5}, "lower min_bits to 1 or raise the budget"),
        ({"bits": 2.5, "allocation": "uniform"}, "whole number"),
        ({"min_bits": 9, "max_bits": 8}, "min_bits=9, max_bits=8"),
        ({"rounding": "up"}, "nearest, stochastic"),
        ({"importance": "love"}, "variance"),
        ({"allocation": "fair"}, "adaptive"),
    ]:
        with pytest.raises(ConfigError, match=words):
            PackedCodec(**options)  # type: ignore[arg-type]
    for bad in (math.nan, math.inf, -math.inf):
        vector = torch.ones(1000)
        vector[3], vector[700] = bad, bad
        for codec in (PackedCodec(), PackedCodec(allocation="uniform")):
            with pytest.raises(NonFiniteError, match="2 of 1000"):
                codec.encode(vector)
            with pytest.raises(NonFiniteError, match="2 of 1000"):
                codec.encode(vector, dense=((0, 10),))
    with pytest.raises(ConfigError, match="needs gradient"):
        PackedCodec(importance="fisher").encode(torch.ones(10))
    with pytest.raises(PreconditionError, match="sorted, disjoint"):
        PackedCodec().encode(torch.ones(10), dense=((4, 6), (5, 8)))
    with pytest.raises(PreconditionError, match="floating vector"):
        PackedCodec().encode(torch.ones(3, 3))


def test_another_count_or_version_is_refused() -> None:
    packet = PackedCodec().encode(torch.ones(1000))
    with pytest.raises(PacketError, match="1000 values where 999 are expected"):
        decode(packet, expected_count=999)
    data = bytearray(packet.to_bytes())
    data[4] = 2
    with pytest.raises(PacketError, match="version 2, this HQDE reads 1"):
        decode(Packet.from_bytes(data))
    with pytest.raises(PacketError, match="truncated"):
        decode(Packet.from_bytes(packet.to_bytes()[:-1]))
    with pytest.raises(PacketError, match="too long"):
        decode(Packet.from_bytes(packet.to_bytes() + b"x"))
    with pytest.raises(PacketError, match="no packet"):
        decode(Packet.from_bytes(b"x" * 100))
    with pytest.raises(PacketError, match="at least 36 bytes"):
        decode(Packet.from_bytes(b""))
