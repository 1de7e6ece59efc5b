"""Blocks of 128 numbers to codes and a scale, and back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hqde.compression.header import refuse_nonfinite
from hqde.errors import ConfigError

Rounding = Literal["nearest", "stochastic"]
ROUNDINGS = ("nearest", "stochastic")
SEARCHED_BITS = 4  # up to here levels are few: half of them lie on each side of 0, and the scale is searched
FLOAT32_MAX = float(torch.finfo(torch.float32).max)
# Steps tried first, as fractions of the one at which nothing clips; the best is then refitted.
FRACTIONS = {3: (0.6, 0.75, 0.95), 4: (0.72, 0.92)}
# With two bits the best step follows the root mean square, hardly the largest value.
RMS_STEPS = (0.8, 1.0, 1.25)


def quantize_blocks(
    rows: Tensor, bits: int, *, rounding: Rounding = "nearest", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and one scale per row; a row's result depends on that row alone.

    As ``quantize_levels``, with the codes as whole numbers: uint8 up to 8 bits, else int32.

    Example:
        >>> rows = torch.linspace(-1, 1, 128).reshape(1, 128)
        >>> codes, scales = quantize_blocks(rows, 8)
        >>> bool((dequantize_blocks(codes, scales, 8) - rows).abs().max() <= scales.float() / 2)
        True
    """
    codes, scales = quantize_levels(rows, bits, rounding=rounding, generator=generator)
    return codes.to(torch.uint8 if bits <= 8 else torch.int32), scales


def quantize_levels(
    rows: Tensor,
    bits: int,
    *,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes, still as float32, and one scale per row.

    A code c stands for (c - offset) · scale. Up to 4 bits offset = (2^b - 1) / 2: all levels are used, none
    is 0, and the scale is the best in squared error of a few candidates, each refitted by least squares
    (scale = ⟨x, q⟩ / ⟨q, q⟩). Above, offset = 2^(b-1): zero is exact, and the scale is rounded up so that
    nothing clips. The scale is rounded to bfloat16 before the codes are chosen. A row of zeros has scale 0.

    Args:
        rows: ``(n, 128)`` float32, finite, on any device; left as it is.
        bits: 1 to 16.
        rounding: "stochastic" is unbiased: E[decoded] = x; its scale never clips.
        generator: for stochastic rounding, on the device of ``rows``.
        workspace: ``(3, n or more, 128)`` float32 on that device, overwritten: the codes are in it. Whoever
            has many rows quantises them in chunks with one workspace, so that no memory is asked for anew.

    Returns:
        codes ``(n, 128)`` float32, whole numbers in [0, 2^bits); scales ``(n,)`` bfloat16.

    Raises:
        NonFiniteError: values that are NaN or infinite.

    Example:
        >>> quantize_levels(torch.tensor([[-1.0, 0.0, 0.5, 1.0]]), 3)[0]
        tensor([[0., 4., 6., 7.]])

    Source: least-squares refit: Zhang et al. 2018, "LQ-Nets", eq. 7; stochastic rounding: Alistarh et al.
    2017, "QSGD", section 3.1.
    """
    if workspace is None:
        workspace = rows.new_empty(3, *rows.shape)
    spare = workspace[1:, : len(rows)]
    magnitudes = torch.abs(rows, out=workspace[0, : len(rows)])
    tops = magnitudes.amax(dim=1, keepdim=True)
    if not bool(torch.isfinite(tops).all()):
        refuse_nonfinite(rows)
    half = 2 ** (bits - 1)
    if bits <= SEARCHED_BITS and rounding == "nearest":
        scales = (tops * search_scale(magnitudes.div_(_nonzero(tops)), half, spare)).bfloat16()
    else:
        scales = _round_up(tops / (half - 0.5 if bits <= SEARCHED_BITS else half - 1))
    scales = scales.clamp(max=largest_scale(bits))
    codes = torch.div(rows, _nonzero(scales.float()), out=magnitudes)
    lowest = 0 if bits <= SEARCHED_BITS else 1
    if rounding == "stochastic":
        if bits <= SEARCHED_BITS:
            codes.add_(half - 0.5)
        below = torch.floor(codes, out=spare[0])
        draws = torch.rand(codes.shape, generator=generator, device=codes.device)
        codes = below.add_(draws < codes.sub_(below))
        if bits > SEARCHED_BITS:
            codes.add_(half)
    elif bits <= SEARCHED_BITS:
        codes.add_(half).floor_()
    else:
        codes.round_().add_(half)
    codes.clamp_(lowest, 2 * half - 1)
    return codes, scales.squeeze(1)


def dequantize_blocks(codes: Tensor, scales: Tensor, bits: int, *, out: Tensor | None = None) -> Tensor:
    """(code - offset) · scale, exact in float32: the product has at most 24 significant bits.

    Args:
        codes: ``(n, 128)`` of ``bits`` bits each.
        scales: ``(n,)`` bfloat16.
        bits: 1 to 16.
        out: ``(n, 128)`` float32 to write to, if there is one.

    Returns:
        ``(n, 128)`` float32.

    Example:
        >>> dequantize_blocks(torch.tensor([[0, 15]]), torch.tensor([2.0]), 4)
        tensor([[-15., 15.]])
    """
    half = 2 ** (bits - 1)
    values = codes.to(torch.float32) if out is None else out.copy_(codes)
    return values.sub_(half - 0.5 if bits <= SEARCHED_BITS else half).mul_(scales.float().unsqueeze(1))


def largest_scale(bits: int) -> float:
    """The largest scale that no code of so many bits can turn into an infinite float32; a bfloat16."""
    limit = torch.tensor([FLOAT32_MAX / 2 ** (bits - 1)])
    return float(limit.view(torch.int32).bitwise_and_(-65536).view(torch.float32))


def search_scale(shapes: Tensor, half: int, spare: Tensor) -> Tensor:
    """``(n, 1)`` best scale for magnitudes ``(n, 128)`` in [0, 1]; the levels are 0.5, 1.5, …, half - 0.5."""
    if half == 1:
        return shapes.mean(dim=1, keepdim=True).mul_(2.0)
    candidates: list[float | Tensor]
    if half == 2:
        rms = torch.linalg.vector_norm(shapes, dim=1, keepdim=True).div_(shapes.shape[1] ** 0.5)
        candidates = [1.0 / _nonzero(rms * step) for step in RMS_STEPS]
    else:
        candidates = [half / fraction for fraction in FRACTIONS[half.bit_length()]]
    best = gain = torch.zeros(len(shapes), 1, device=shapes.device)
    levels, product = spare
    for inverse in candidates:
        torch.mul(shapes, inverse, out=levels).floor_().clamp_(max=half - 1).add_(0.5)
        along = torch.mul(shapes, levels, out=product).sum(dim=1, keepdim=True)
        square = torch.mul(levels, levels, out=product).sum(dim=1, keepdim=True)
        fitted = along / square
        explained = fitted * along  # what of the row's square the levels explain: the error is the rest
        best = torch.where(explained > gain, fitted, best)
        gain = torch.maximum(explained, gain)
    return best


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1.0)


def _round_up(values: Tensor) -> Tensor:
    """Non-negative float32 to the next bfloat16 that is not smaller."""
    bits = values.float().contiguous().view(torch.int32)
    return ((bits + 65535) >> 16).to(torch.int16).view(torch.bfloat16)


def check_rounding(rounding: str) -> None:
    """Refuse an unknown rounding (ConfigError)."""
    if rounding not in ROUNDINGS:
        raise ConfigError(f"rounding is one of {', '.join(ROUNDINGS)}, got '{rounding}'")


def check_generator(rounding: str, generator: torch.Generator | None) -> None:
    """Refuse stochastic rounding without a generator (ConfigError)."""
    if rounding == "stochastic" and generator is None:
        raise ConfigError("stochastic rounding needs generator=…, e.g. hqde.seeding.generator(seed, 'codec')")
