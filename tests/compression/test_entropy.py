"""The entropy codec: rate, error, cuts, and what it refuses."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hqde.compression import EntropyCodec, Packet, decode
from hqde.compression.stages import stage_of
from hqde.errors import ConfigError, MissingExtraError, NonFiniteError

STAGES = ("zstd", "ans")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def some_vector(count: int, seed: int, *, uneven: bool = True) -> Tensor:
    """Gaussian, or with a size that changes every 4096 values."""
    draws = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(count // 4096 + 1, generator=draws)).repeat_interleave(4096)[:count]
    return torch.randn(count, generator=draws) * (sizes if uneven else 1.0)


def gap(vector: Tensor, packet: Packet) -> float:
    """Bits per weight above what a Gaussian of this variance needs for this error."""
    error = float((decode(packet) - vector).double().square().mean() / vector.double().square().mean())
    return 8 * packet.nbytes / len(vector) + 0.5 * math.log2(error)


@pytest.mark.parametrize(
    ("stage", "bits", "most"),
    [("zstd", 2, 0.30), ("zstd", 3, 0.30), ("ans", 2, 0.28), ("ans", 3, 0.28), ("ans", 4, 0.28)],
)
def test_gap_to_the_gaussian_bound(stage: str, bits: int, most: float) -> None:
    vector = some_vector(2**18, 0, uneven=False)
    assert gap(vector, EntropyCodec(bits=bits, stage=stage).encode(vector)) <= most  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("bits", [0.3, 1.0, 2.5, 5.0])
def test_the_budget_is_met_within_one_per_cent(stage: str, bits: float) -> None:
    codec = EntropyCodec(bits=bits, stage=stage)  # type: ignore[arg-type]
    vector = some_vector(150_000, 1)
    assert 0.99 * bits <= 8 * codec.encode(vector).nbytes / len(vector) <= bits
    wild = some_vector(40_000, 1, uneven=False) ** 5  # its size jumps as the step moves
    assert 0.97 * bits <= 8 * codec.encode(wild).nbytes / len(wild) <= bits


def test_blocks_of_different_size_get_different_bits_by_themselves() -> None:
    vector = some_vector(2**17, 2)
    even = 0.5 * (vector.view(-1, 4096).square().mean(dim=1).log2().mean() - vector.square().mean().log2())
    for stage in STAGES:
        assert gap(vector, EntropyCodec(bits=3, stage=stage).encode(vector)) <= float(even) + 0.4  # type: ignore[arg-type]


@settings(max_examples=40)
@given(
    st.sampled_from(STAGES), st.sampled_from([0.4, 1.0, 3.0]), st.integers(0, 3000), st.sampled_from(DTYPES),
    st.sampled_from(["variance", "magnitude", "fisher"]), st.integers(0, 99),
)  # fmt: skip
def test_every_length_and_dtype_comes_back(
    stage: str, bits: float, count: int, dtype: torch.dtype, importance: str, seed: int
) -> None:
    vector = some_vector(count, seed).to(dtype)
    before = vector.clone()
    dense = ((count // 4, count // 2),) if count >= 4 else ()
    codec = EntropyCodec(bits=bits, stage=stage, importance=importance)  # type: ignore[arg-type]
    packet = codec.encode(vector, dense=dense, gradient=torch.ones(count))
    decoded = decode(packet, expected_count=count)
    assert torch.equal(vector, before)
    assert decoded.dtype == dtype
    assert torch.isfinite(decoded.float()).all()
    assert torch.equal(codec.encode(vector, dense=dense, gradient=torch.ones(count)).payload, packet.payload)
    if count:
        error = (decoded.double() - vector.double()).square().mean()
        assert error <= vector.double().square().mean() * 1.01 + 1e-30


@pytest.mark.parametrize("stage", STAGES)
def test_a_cut_is_the_slice_to_the_bit(stage: str) -> None:
    vector = some_vector(5 * 2**16 + 777, 3)
    gradient = some_vector(len(vector), 4)
    dense = ((100, 200), (70_000, 70_001), (200_000, 280_000))
    codec = EntropyCodec(bits=1.5, stage=stage, importance="fisher")  # type: ignore[arg-type]
    packet = codec.encode(vector, dense=dense, gradient=gradient)
    whole = decode(packet)
    draws = np.random.default_rng(0)
    for _ in range(12):
        start, stop = sorted(draws.choice(len(vector) + 1, 2, replace=False).tolist())
        part = packet.cut(start, stop)
        assert torch.equal(decode(part, expected_count=stop - start), whole[start:stop])
        middle = (start + stop) // 2
        if start < middle:
            assert torch.equal(decode(part.cut(0, middle - start)), whole[start:middle])
    assert torch.equal(decode(packet.cut(210_000, 220_000)), whole[210_000:220_000])  # dense alone
    assert packet.cut(2**16 + 101, 2**16 + 102).nbytes < 0.3 * packet.nbytes


@pytest.mark.parametrize("stage", STAGES)
def test_zeros_constants_outliers_and_extremes(stage: str) -> None:
    codec = EntropyCodec(bits=1, stage=stage)  # type: ignore[arg-type]
    zeros = torch.zeros(300_000)
    packet = codec.encode(zeros)
    assert torch.equal(decode(packet), zeros)
    assert packet.nbytes < 3000
    outlier = some_vector(50_000, 5, uneven=False)
    outlier[77] = 1e6
    decoded = decode(codec.encode(outlier))
    assert abs(float(decoded[77]) - 1e6) < 2.0
    keep = torch.arange(50_000) != 77
    assert (decoded - outlier)[keep].square().mean() < 0.6 * outlier[keep].square().mean()
    for size in (1e-45, 1e-40, 1e-30, 1e30, 3.4e38):
        for shape in (torch.ones(20_000), torch.linspace(-1, 1, 20_000), torch.eye(200)[7].repeat(100)):
            decoded = decode(codec.encode(shape * size))
            assert torch.isfinite(decoded).all()
            assert (decoded - shape * size).abs().max() <= 1.01 * size + 1e-37


@pytest.mark.parametrize("stage", STAGES)
def test_stochastic_rounding_is_unbiased(stage: str) -> None:
    vector = torch.tensor([-1.0, -0.7, -0.3, -0.011, 0.0, 0.123, 0.4999, 1.0]).repeat(8192)
    codec = EntropyCodec(bits=1.5, stage=stage, rounding="stochastic")  # type: ignore[arg-type]
    packet = codec.encode(vector, generator=torch.Generator().manual_seed(0))
    many = decode(packet).view(-1, 8).double()
    deviation = many.std(dim=0) / math.sqrt(len(many))
    assert ((many.mean(dim=0) - vector[:8]).abs() <= 3 * deviation + 1e-6).all()
    again = codec.encode(vector, generator=torch.Generator().manual_seed(0))
    assert torch.equal(packet.payload, again.payload)


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    vector = some_vector(2**17, 6, uneven=False)
    gradient = torch.ones_like(vector)
    gradient[: 2**16] = 10.0
    packet = EntropyCodec(bits=2, importance="fisher").encode(vector, gradient=gradient)
    error = (decode(packet) - vector).square().view(2, -1).mean(dim=1)
    assert error[0] < 0.5 * error[1]


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0.0, 7.5):
        with pytest.raises(ConfigError, match="up to 7 bits"):
            EntropyCodec(bits=bits)
    with pytest.raises(ConfigError, match="stage is one of zstd, ans, got 'lz4'"):
        EntropyCodec(stage="lz4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs generator="):
        EntropyCodec(rounding="stochastic").encode(torch.ones(5))
    with pytest.raises(NonFiniteError, match="1 of 3"):
        EntropyCodec().encode(torch.tensor([1.0, math.nan, 2.0]))
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"hqde\[ans\]"):
        EntropyCodec(stage="ans")


@pytest.mark.parametrize("name", STAGES)
def test_threads_do_not_spoil_each_others_bytes(name: str) -> None:
    stage = stage_of(name)
    draws = np.random.default_rng(0)
    symbols = [np.minimum(draws.geometric(0.5, 1 << 14) - 1, 9).astype(np.uint8) for _ in range(4)]
    alone = [stage.write(own, 4) for own in symbols]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(100):
            assert list(pool.map(lambda own: stage.write(own, 4), symbols)) == alone
            for own, read in zip(symbols, pool.map(lambda b: stage.read(b, 4, 1 << 14), alone), strict=True):
                assert np.array_equal(own, read)
