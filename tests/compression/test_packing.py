"""The packer against bit strings, for every width and length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqde.compression import pack, pack_blocks, unpack, unpack_blocks
from hqde.errors import PreconditionError


def written_out(codes: list[int], bits: int) -> list[int]:
    """The format by its definition, one bit at a time."""
    codes = codes + [0] * (-len(codes) % 8)
    size, shift, data = len(codes), 0, []
    for width in (8, 8, 4, 2, 1):
        if bits - shift < width:
            continue
        num_bytes = size * width // 8
        for j in range(num_bytes):
            text = ""  # highest bit first
            for i in reversed(range(8 // width)):
                text += format(codes[i * num_bytes + j] >> shift, "020b")[-width:]
            data.append(int(text, 2))
        shift += width
    return data


@given(st.integers(1, 16), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_packing_is_what_the_bits_say_and_comes_back(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed))
    before = codes.clone()
    packed = pack(codes, bits)
    assert packed.tolist() == written_out(codes.tolist(), bits)
    assert len(packed) == (count + 7) // 8 * bits
    assert torch.equal(unpack(packed, bits, count), codes)
    assert torch.equal(codes, before)


@pytest.mark.parametrize("bits", range(1, 17))
def test_a_block_is_sixteen_bytes_per_bit_and_stands_alone(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 128), generator=torch.Generator().manual_seed(bits))
    rows = codes.to(torch.uint8 if bits <= 8 else torch.int32)
    packed = pack_blocks(rows, bits)
    assert packed.shape == (5, 16 * bits)
    assert torch.equal(unpack_blocks(packed, bits).long(), codes)
    for row, alone in zip(packed, codes, strict=True):
        assert torch.equal(row, pack(alone, bits))


def test_other_widths_and_wrong_sizes_are_refused() -> None:
    for bits in (0, 17):
        with pytest.raises(PreconditionError, match=f"1 to 16 bits, got {bits}"):
            pack(torch.zeros(4, dtype=torch.int64), bits)
    with pytest.raises(PreconditionError, match="9 codes of 3 bits are 6 bytes"):
        unpack(torch.zeros(5, dtype=torch.uint8), 3, 9)
    with pytest.raises(PreconditionError, match="vector of integers"):
        pack(torch.zeros(4), 3)
