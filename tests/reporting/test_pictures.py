"""Pictures of uncertain examples: the PNG files are read back with Pillow."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hqde.errors import RunError
from hqde.reporting import read_run
from hqde.reporting.pictures import encode_png, uncertain_examples

WriteRun = Callable[..., Path]
Image = pytest.importorskip("PIL.Image")


def read_back(data: bytes) -> Any:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_a_picture_survives_png(channels: int, mode: str) -> None:
    pixels = random.Random(channels).randbytes(7 * 5 * channels)
    picture = read_back(encode_png((7, 5, channels), pixels))
    assert (picture.size, picture.mode) == ((5, 7), mode)
    assert picture.tobytes() == pixels


def with_image(write_run: WriteRun, shape: list[int], pixels: bytes) -> Path:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        encoded = base64.b64encode(pixels).decode()
        evaluation["uncertain"] = [
            {**evaluation["uncertain"][0], "image": {"shape": shape, "pixels": encoded}}
        ]

    return write_run(change=change)


def picture_of(run: Path) -> Any:
    (example,) = uncertain_examples(read_run(run))
    assert example.picture is not None
    return read_back(base64.b64decode(str(example.picture).removeprefix("data:image/png;base64,")))


def test_pixels_come_through_as_they_are(write_run: WriteRun) -> None:
    pixels = bytes([0, 255, 7, 200, 100, 50])
    assert picture_of(with_image(write_run, [2, 1, 3], pixels)).tobytes() == pixels


def test_a_large_picture_is_thinned(write_run: WriteRun) -> None:
    rows = bytes(y % 256 for y in range(300) for _ in range(150))
    picture = picture_of(with_image(write_run, [300, 150, 1], rows))
    assert picture.size == (38, 75)  # every fourth pixel: 300 / 4 <= 96 < 300 / 3
    assert [picture.getpixel((0, y)) for y in (0, 1, 2)] == [0, 4, 8]


def test_many_channels_show_the_first_three(write_run: WriteRun) -> None:
    assert picture_of(with_image(write_run, [1, 2, 6], bytes(range(200, 212)))).tobytes() == bytes(
        [200, 201, 202, 206, 207, 208]
    )


def test_two_sizes_mean_a_grey_picture(write_run: WriteRun) -> None:
    assert picture_of(with_image(write_run, [1, 2], bytes([1, 255]))).mode == "L"


def test_dim_pictures_are_brightened_alike(write_run: WriteRun) -> None:
    assert picture_of(with_image(write_run, [1, 3, 1], bytes([0, 8, 16]))).tobytes() == bytes([0, 120, 240])


@pytest.mark.parametrize(
    ("shape", "pixels", "sentence"),
    [
        ([2, 2, 1], base64.b64encode(b"abc").decode(), "2x2x1 pixels take 4 bytes, got 3"),
        ([2, 2], "not base64!", "not base64"),
        ([0, 2, 1], "", "shape must be"),
        ([2], "", "shape must be"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(
    write_run: WriteRun, shape: Any, pixels: str, sentence: str
) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        evaluation["uncertain"][2]["image"] = {"shape": shape, "pixels": pixels}

    with pytest.raises(RunError, match=rf"evaluation\.json, uncertain\[2\], image: .*{sentence}"):
        uncertain_examples(read_run(write_run(change=change)))


def test_features_stand_in_for_a_picture(write_run: WriteRun) -> None:
    examples = uncertain_examples(read_run(write_run(regression=True)))
    assert examples[0].picture is None
    assert examples[0].features == "0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, … 5 more"
    assert examples[0].spread == "3"  # the square root of a variance of 9
    assert examples[0].epistemic_share == pytest.approx(100 / 3)


def test_right_and_wrong_are_told_apart(write_run: WriteRun) -> None:
    examples = uncertain_examples(read_run(write_run(classes=[f"class {i}" for i in range(10)])))
    assert [e.right for e in examples[:4]] == [True, False, False, True]
    assert (examples[1].target, examples[1].predicted) == ("class 1", "class 2")
