"""Random streams: named by who uses them, unrelated to each other, invisible to the caller."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqde.seeding import derive_seed, generator, seeded

parts = st.one_of(st.integers(-5, 5), st.text("ab/'\"1", max_size=4))
paths = st.lists(parts, max_size=4).map(tuple)


def draws() -> tuple[float, float, float]:
    """One number from each global stream."""
    return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def streams() -> tuple[object, ...]:
    """Where the three global streams stand."""
    numbers = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numbers[1].tolist(), numbers[2:], random.getstate()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((0,), 4761921975702974394),
        ((0, "worker", 3, "round", 7), 5379279274994323312),
        ((2**40, "init", 0), 9003092118254680963),
    ],
)
def test_the_streams_stay_what_they_are(path, expected):
    """Pinned: another value would change every run that was ever reported."""
    assert derive_seed(*path) == expected


@given(seed=st.integers(0, 2**64), path=paths)
def test_a_seed_fits_every_generator(seed, path):
    value = derive_seed(seed, *path)
    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)


@given(left=st.tuples(st.integers(0, 3), paths), right=st.tuples(st.integers(0, 3), paths))
def test_different_names_give_different_streams(left, right):
    """Also where joining the parts would give one text: ("a", "b") and ("a/b",), 1 and "1"."""
    same = derive_seed(left[0], *left[1]) == derive_seed(right[0], *right[1])
    assert same == (left == right)


def test_neighbouring_streams_are_unrelated():
    first = torch.rand(2000, generator=generator(0, "worker", 0))
    for neighbour in (generator(0, "worker", 1), generator(1, "worker", 0), generator(0, "worker", 0, 0)):
        other = torch.rand(2000, generator=neighbour)
        # the correlation of 2000 independent pairs has a standard deviation of 0.022
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.1
    assert torch.equal(first, torch.rand(2000, generator=generator(0, "worker", 0)))


def test_a_seeded_block_repeats_and_depends_on_its_name():
    with seeded(1, "a"):
        first = draws()
    draws()
    with seeded(1, "a"):
        assert draws() == first
    for other in ((1, "b"), (2, "a"), (1,)):
        with seeded(*other):
            assert all(one != two for one, two in zip(draws(), first, strict=True))


def test_the_caller_s_streams_go_on_as_if_nothing_had_happened():
    before = streams()
    with seeded(5, "x"):
        draws()
        with seeded(6, "y"):
            draws()
    assert streams() == before


def test_an_inner_block_does_not_move_the_outer_one():
    with seeded(5, "x"):
        plain = [draws(), draws()]
    with seeded(5, "x"):
        found = [draws()]
        with seeded(6, "y"):
            draws()
        found.append(draws())
    assert found == plain


def test_an_exception_puts_the_streams_back_too():
    @seeded(5)
    def draw_and_fail() -> None:
        draws()
        raise RuntimeError("no")

    before = streams()
    with pytest.raises(RuntimeError, match="no"):
        draw_and_fail()
    assert streams() == before


def test_the_generator_and_the_seeded_block_of_one_name_agree():
    with seeded(3, "init"):
        inside = torch.rand(4)
    assert torch.equal(inside, torch.rand(4, generator=generator(3, "init")))


@pytest.mark.gpu
def test_a_gpu_s_stream_is_put_back_as_well():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda:0")
    before = torch.cuda.get_rng_state(device)
    with seeded(1, "a", device=device):
        first = torch.rand(4, device=device)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
    with seeded(1, "a", device=device):
        assert torch.equal(torch.rand(4, device=device), first)
