"""Augmentation against a slow oracle that treats one image, one pixel at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hqde.data import Augmentation
from hqde.errors import ConfigError, PreconditionError


def slow(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """The definition, spelled out: shift, then mirror, then blank, with draws in that documented order."""
    count, channels, height, width = images.shape

    def draw(low: int, high: int) -> list[int]:
        return torch.randint(low, high, (count, 1), generator=generator).flatten().tolist()

    nothing = [0] * count
    mirrored = draw(0, 2) if augmentation.flip else nothing
    reach = augmentation.crop_padding
    down = draw(-reach, reach + 1) if reach else nothing
    right = draw(-reach, reach + 1) if reach else nothing
    middle_row = draw(0, height) if augmentation.cutout else nothing
    middle_column = draw(0, width) if augmentation.cutout else nothing
    out = torch.zeros_like(images)
    for i in range(count):
        for row in range(height):
            for column in range(width):
                from_row = row + down[i]
                from_column = (width - 1 - column if mirrored[i] else column) + right[i]
                if not (0 <= from_row < height and 0 <= from_column < width):
                    continue
                top = middle_row[i] - augmentation.cutout // 2
                left = middle_column[i] - augmentation.cutout // 2
                inside = (
                    top <= row < top + augmentation.cutout and left <= column < left + augmentation.cutout
                )
                if not inside:
                    for channel in range(channels):
                        out[i, channel, row, column] = images[i, channel, from_row, from_column]
    return out


@settings(deadline=None, max_examples=50)
@given(
    crop_padding=st.integers(0, 5),
    flip=st.booleans(),
    cutout=st.integers(0, 7),
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_equals_the_slow_definition(crop_padding, flip, cutout, shape, dtype, seed):
    augmentation = Augmentation(crop_padding, flip, cutout)
    images = torch.randint(1, 255, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = images.clone()
    fast = augmentation(images, torch.Generator().manual_seed(seed))
    assert fast.dtype == dtype
    assert torch.equal(fast, slow(images, augmentation, torch.Generator().manual_seed(seed)))
    assert torch.equal(images, before)


def test_the_same_generator_state_gives_the_same_images_and_another_others():
    images = torch.rand(16, 3, 8, 8)
    augmentation = Augmentation(2, True, 3)
    first = augmentation(images, torch.Generator().manual_seed(7))
    assert torch.equal(first, augmentation(images, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, augmentation(images, torch.Generator().manual_seed(8)))


def test_each_image_has_its_own_draws():
    images = torch.rand(1, 1, 8, 8).expand(64, -1, -1, -1)
    changed = Augmentation(4, True)(images, torch.Generator().manual_seed(0))
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 40


def test_flip_mirrors_about_half_of_the_images():
    images = torch.arange(4.0).expand(400, 1, 1, 4)
    flipped = Augmentation(flip=True)(images, torch.Generator().manual_seed(0))
    assert 160 < int((flipped[:, 0, 0, 0] == 3.0).sum()) < 240
    assert set(flipped[:, 0, 0, 0].tolist()) == {0.0, 3.0}


def test_shifts_reach_every_offset_alike():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1.0
    shifted = Augmentation(crop_padding=2)(image.expand(5000, -1, -1, -1), torch.Generator().manual_seed(0))
    places = shifted.mean(0).flatten()
    assert torch.allclose(places, torch.full((25,), 1 / 25), atol=0.012)


def test_cutout_blanks_a_square_of_its_side():
    blanked = Augmentation(cutout=3)(torch.ones(50, 1, 9, 9), torch.Generator().manual_seed(0)) == 0
    sizes = blanked.flatten(1).sum(1)
    assert int(sizes.max()) == 9
    assert int(sizes.min()) >= 4  # centred in a corner, half of each side is cut off


def test_channels_last_images_are_taken():
    images = torch.rand(4, 3, 6, 6)
    other = images.contiguous(memory_format=torch.channels_last)
    augmentation = Augmentation(2, True, 2)
    expected = augmentation(images, torch.Generator().manual_seed(0))
    assert torch.equal(augmentation(other, torch.Generator().manual_seed(0)), expected)


def test_nothing_enabled_changes_nothing_and_draws_nothing():
    images, generator = torch.rand(2, 1, 3, 3), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert Augmentation()(images, generator) is images
    assert torch.equal(generator.get_state(), state)
    assert not Augmentation().enabled
    assert Augmentation(1).enabled
    assert Augmentation(flip=True).enabled
    assert Augmentation(cutout=1).enabled


def test_rows_that_are_no_images_are_refused():
    with pytest.raises(PreconditionError, match=r"images \(n, c, h, w\), not \(5, 3\)"):
        Augmentation(flip=True)(torch.rand(5, 3), torch.Generator())


@pytest.mark.parametrize("wrong", [{"crop_padding": -1}, {"cutout": -2}])
def test_negative_sizes_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be 0 or more pixels, not -"):
        Augmentation(**wrong)
