"""How many bits each block gets."""

from __future__ import annotations

import torch
from torch import Tensor

from hqde.errors import ConfigError, PreconditionError

# Mean squared error of HQDE's quantiser on blocks of 128 unit Gaussians,
# for 1 to 16 bits; a test measures it again.
GAUSSIAN_DISTORTION = (
    0.36064, 0.11618, 0.0359, 0.010307, 0.0030195, 7.0791e-4, 1.7195e-4, 4.2589e-5,
    1.0531e-5, 2.6225e-6, 6.545e-7, 1.6334e-7, 4.087e-8, 1.0209e-8, 2.55e-9, 6.385e-10,
)  # fmt: skip


def allocate_bits(spread: Tensor, average_bits: float, min_bits: int = 2, max_bits: int = 16) -> Tensor:
    """The widths with the least total error Σ spreadᵢ · D(bᵢ) whose sum is exactly the budget.

    Going from b to b + 1 bits gains spreadᵢ · (D(b) - D(b + 1)). D is convex, so the gains of a block fall,
    and the largest gains of all blocks together are the optimum. Equal gains go to the block that comes
    first.

    Args:
        spread: ``(n,)`` >= 0: weight of a block's error times its mean square (``block_spread``).
        average_bits: the budget is round(average_bits · n) bits.
        min_bits, max_bits: 1 <= min_bits <= average_bits <= max_bits <= 16.

    Returns:
        ``(n,)`` uint8.

    Raises:
        ConfigError: bounds or a budget that contradict each other.

    Example:
        >>> allocate_bits(torch.tensor([1.0, 16.0, 1.0, 0.0]), 3.0)
        tensor([3, 5, 2, 2], dtype=torch.uint8)

    Source: Fox 1966, "Discrete optimization via marginal analysis".
    """
    check_bits(average_bits, min_bits, max_bits)
    count = len(spread)
    budget = round(average_bits * count) - min_bits * count
    widths = torch.full((count,), min_bits, dtype=torch.uint8, device=spread.device)
    if budget <= 0:
        return widths
    table = torch.tensor(
        GAUSSIAN_DISTORTION[min_bits - 1 : max_bits], dtype=torch.float32, device=spread.device
    )
    gains = spread.float().unsqueeze(1) * (table[:-1] - table[1:])
    last = gains.view(-1).topk(budget, sorted=False).values.amin()
    above = (gains > last).sum(dim=1)
    ties = (gains == last).sum(dim=1)
    left = budget - int(above.sum())
    before = ties.cumsum(0) - ties  # equal gains of blocks that come first
    return widths.add_(above + (left - before).clamp(min=0).minimum(ties))


def linear_bits(
    importance: Tensor, min_bits: int = 4, max_bits: int = 16, *, average_bits: float | None = None
) -> Tensor:
    """The seed's rule: min + (max - min) · importance, rounded to the nearest whole number of bits.

    Args:
        importance: ``(n,)`` in [0, 1].
        min_bits, max_bits: bits at 0 and at 1.
        average_bits: if given, all widths are moved together, within the bounds, until their sum is
            round(average_bits · n).

    Returns:
        ``(n,)`` uint8.

    Raises:
        ConfigError: bounds or a budget that contradict each other.
        PreconditionError: importance outside [0, 1].

    Example:
        >>> linear_bits(torch.tensor([0.0, 0.25, 1.0]))
        tensor([ 4,  7, 16], dtype=torch.uint8)
        >>> linear_bits(torch.tensor([0.0, 0.25, 1.0]), average_bits=8)
        tensor([ 4,  6, 14], dtype=torch.uint8)
    """
    check_bits(min_bits if average_bits is None else average_bits, min_bits, max_bits)
    if len(importance) and not bool(((importance >= 0) & (importance <= 1)).all()):
        raise PreconditionError(
            "importance must lie in [0, 1], "
            f"got {float(importance.min()):.3g} to {float(importance.max()):.3g}"
        )
    wanted = min_bits + (max_bits - min_bits) * importance.double()
    if average_bits is None:
        return wanted.round().to(torch.uint8)
    budget = round(average_bits * len(importance))
    low, high = float(min_bits - max_bits), float(max_bits - min_bits)
    for _ in range(40):  # the largest common shift that stays within the budget
        middle = (low + high) / 2
        inside = int((wanted + middle).clamp(min_bits, max_bits).floor().sum()) <= budget
        low, high = (middle, high) if inside else (low, middle)
    shifted = (wanted + low).clamp(min_bits, max_bits)
    widths = shifted.floor()
    missing = budget - int(widths.sum())  # blocks that reach the next bit at the same shift
    rest = torch.where(widths < max_bits, ((shifted - widths) * 2**20).round(), -1.0)
    widths[rest.argsort(descending=True, stable=True)[:missing]] += 1
    return widths.to(torch.uint8)


def check_bits(average_bits: float, min_bits: int, max_bits: int) -> None:
    """Refuse bounds outside 1 to 16, or a budget outside the bounds (ConfigError)."""
    if not 1 <= min_bits <= max_bits <= 16:
        raise ConfigError(
            "bits per weight lie in 1 to 16 and min_bits <= max_bits, "
            f"got min_bits={min_bits}, max_bits={max_bits}"
        )
    if not min_bits <= average_bits <= max_bits:
        cure = (
            f"lower min_bits to {max(1, int(average_bits))} or raise the budget"
            if 1 <= average_bits < min_bits
            else f"choose a budget from {min_bits} to {max_bits}"
        )
        raise ConfigError(
            f"an average of {average_bits:g} bits is outside "
            f"min_bits={min_bits} to max_bits={max_bits}: {cure}"
        )
