"""The packed codec on a GPU makes the same packets and decodes the same numbers."""

from __future__ import annotations

import pytest
import torch

from hqde.compression import PackedCodec, decode, pack, unpack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_is_the_same(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (1001,), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes.cuda(), bits)
    assert torch.equal(packed.cpu(), pack(codes, bits))
    assert torch.equal(unpack(packed, bits, 1001).cpu(), codes)


@pytest.mark.parametrize("allocation", ["uniform", "adaptive", "linear"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8, 12, 16])
def test_a_packet_from_the_gpu_decodes_alike_everywhere(allocation: str, bits: int) -> None:
    draws = torch.Generator().manual_seed(0)
    vector = (
        torch.randn(300_001, generator=draws)
        * torch.exp(torch.randn(3001, generator=draws)).repeat_interleave(100)[:300_001]
    )
    dense = ((5, 900), (200_000, 200_100))
    codec = PackedCodec(bits=bits, min_bits=1, allocation=allocation)  # type: ignore[arg-type]
    packet = codec.encode(vector.cuda(), dense=dense)
    assert packet.payload.device.type == "cpu"
    there = decode(packet, device="cuda")
    assert there.device.type == "cuda"
    here = decode(packet)
    assert torch.equal(there.cpu(), here)
    other = decode(codec.encode(vector, dense=dense))
    errors = [float((values - vector).double().square().mean()) for values in (here, other)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_stochastic_rounding_on_the_gpu() -> None:
    codec = PackedCodec(bits=2, allocation="uniform", rounding="stochastic")
    vector = torch.full((128_000,), 0.3, device="cuda")
    vector[::128] = 1.0
    draws = torch.Generator(device="cuda").manual_seed(0)
    decoded = decode(codec.encode(vector, generator=draws), device="cuda")
    assert float(decoded.mean()) == pytest.approx(float(vector.mean()), abs=0.01)
