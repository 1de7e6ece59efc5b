"""Error feedback: nothing is lost, only late."""

from __future__ import annotations

import pytest
import torch

from hqde.compression import EntropyCodec, NoCodec, PackedCodec, decode, make_codec, with_feedback
from hqde.errors import ConfigError, PreconditionError

CODECS = [
    PackedCodec(bits=1, min_bits=1, allocation="uniform"),
    PackedCodec(bits=2),
    PackedCodec(bits=4, allocation="uniform"),
    EntropyCodec(bits=0.5),
    NoCodec(),
]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_the_sum_of_what_arrives_follows_the_sum_of_what_was_sent(codec: object) -> None:
    draws = torch.Generator().manual_seed(0)
    size, parameters, dense = 20_000, 19_000, ((100, 150), (19_000, 20_000))
    sent, arrived = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    residual, sizes = None, []
    common = torch.randn(size, generator=draws)
    for _ in range(40):
        update = common + torch.randn(size, generator=draws)
        before = update.clone()
        old = None if residual is None else residual.clone()
        kept = residual
        packet, decoded, residual = with_feedback(
            codec, update, residual, num_parameters=parameters, dense=dense
        )
        assert torch.equal(decoded, decode(packet))
        assert torch.equal(update, before)
        assert old is None or torch.equal(old, kept)  # the caller's state is the caller's
        sent += update
        arrived += decode(packet)
        sizes.append(float(residual.square().mean()))
        assert residual.shape == (parameters,)
        assert not residual[100:150].any()
    quantised = torch.ones(parameters, dtype=torch.bool)
    quantised[100:150] = False
    difference = (sent - arrived)[:parameters]
    assert (difference - residual)[quantised].abs().max() < 1e-3
    assert max(sizes[20:]) <= 2.5 * max(sizes[:20])  # it stops growing; late with one bit
    assert max(sizes) < 0.1 * float(sent.square().mean())  # far below what was sent


def test_stochastic_rounding_and_wrong_sizes_are_refused() -> None:
    vector = torch.ones(10)
    with pytest.raises(ConfigError, match="exclude each other"):
        with_feedback(PackedCodec(rounding="stochastic"), vector, None, num_parameters=10)
    with pytest.raises(PreconditionError, match=r"residual of \(3,\)"):
        with_feedback(PackedCodec(), vector, torch.zeros(3), num_parameters=10)
    with pytest.raises(PreconditionError, match="11 parameters"):
        with_feedback(PackedCodec(), vector, None, num_parameters=11)


def test_codecs_by_name() -> None:
    assert make_codec("none") == NoCodec()
    assert make_codec("entropy", bits=2.0) == EntropyCodec(bits=2.0)
    for codec in CODECS:
        assert eval(repr(codec)) == codec
    with pytest.raises(ConfigError, match="unknown codec 'paked'; did you mean 'packed'"):
        make_codec("paked")
    with pytest.raises(ConfigError, match="no setting 'bit'; did you mean 'bits'"):
        make_codec("packed", bit=3)
    with pytest.raises(ConfigError, match="it takes none"):
        make_codec("none", bits=3)
