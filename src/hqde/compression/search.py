"""The step with which an entropy-coded body meets its budget, found with few bodies made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqde.compression.chunks import CHUNK, ESCAPE_LIMIT, geometric_entropy
from hqde.compression.packing import BLOCK
from hqde.compression.steps import Sample

TOLERANCE = 0.01
MOST_TRIALS = 12
SAMPLED_CHUNKS = 12
HEADER = 48  # bytes that stand before a body without dense ranges


@dataclass(frozen=True)
class Part:
    """Numbers to be coded, and for each of their blocks which step factor it has."""

    numbers: Tensor
    exponents: Tensor | None

    def sampled(self) -> Part | None:
        """A few chunks from all over, or None where there are not many more."""
        num_chunks = len(self.numbers) // CHUNK
        if num_chunks <= 2 * SAMPLED_CHUNKS:
            return None
        begins = [num_chunks * i // SAMPLED_CHUNKS * CHUNK for i in range(SAMPLED_CHUNKS)]
        numbers = torch.cat([self.numbers[at : at + CHUNK] for at in begins])
        if self.exponents is None:
            return Part(numbers, None)
        blocks = [self.exponents[at // BLOCK : (at + CHUNK) // BLOCK] for at in begins]
        return Part(numbers, torch.cat(blocks))

    def means(self, largest: float) -> NDArray[np.float64]:
        """``(blocks,)``: mean magnitudes of whole blocks, in units of the largest value."""
        rows = self.numbers[: len(self.numbers) // BLOCK * BLOCK].view(-1, BLOCK)
        parts = [(chunk.abs() / largest).mean(dim=1) for chunk in rows.split(CHUNK // BLOCK)]
        return torch.cat(parts).double().numpy()


@dataclass(frozen=True)
class StepSearch:
    """Bisection on the true size, led by what a sample's entropy says about the slope.

    Args:
        budget: bits per weight, all counted.
        sample: of the magnitudes; the largest is 1.
        up_at: where magnitudes round up.
        largest: the largest magnitude, in the vector's unit.
        make: a body from a part and a step in units of the largest value.
    """

    budget: float
    sample: Sample
    up_at: float
    largest: float
    make: Callable[[Part, float], Tensor]

    def find(self, whole: Part, step: float) -> Tensor:
        """The largest body found that is within the budget, beginning with this step."""
        part = whole.sampled()
        if part is not None:  # look for the step where that costs little
            # Block by block, a mean magnitude tells about the bits: so a part tells about the whole.
            here, everywhere = part.means(self.largest), whole.means(self.largest)

            def ratio(step: float) -> float:
                expected = float(geometric_entropy(here / step).mean())
                return float(geometric_entropy(everywhere / step).mean()) / expected if expected else 1.0

            step = self._run(part, step, ratio)[1]
        return self._run(whole, step, lambda _: 1.0)[0]

    def _run(self, part: Part, step: float, ratio: Callable[[float], float]) -> tuple[Tensor, float]:
        """Body and step; the ``ratio`` is what the size counts for."""
        best: Tensor | None = None
        best_bits, best_step = -1.0, 4.0
        low, high = 0.0, math.inf  # a step too fine, one coarse enough, and their sizes
        low_bits = high_bits = self.budget
        aim = self.budget * (1 - TOLERANCE / 2)
        for trial in range(MOST_TRIALS):
            body = self.make(part, step)
            bits = 8 * (len(body) + HEADER) / len(part.numbers) * ratio(step)
            if bits <= self.budget:
                high, high_bits = step, bits
                if bits > best_bits:
                    best, best_bits, best_step = body, bits, step
                if bits >= self.budget * (1 - TOLERANCE):
                    break
            else:
                low, low_bits = step, bits
            # What the sample's entropy misses (headers, the coder's loss, differences between chunks) changes
            # slowly with the step: correct for it, aim a little low, and stay within the bracket.
            wanted = self.sample.rate(step, self.up_at) + aim - bits
            step = self.sample.step_for(max(wanted, 1e-4), self.up_at)
            if low and high < math.inf and (trial >= MOST_TRIALS // 3 or not low < step < high):
                share = min(max((low_bits - aim) / (low_bits - high_bits), 0.1), 0.9)
                step = low * (high / low) ** share
            elif not low < step < high:
                step = 1.3 * low if low else high / 1.3
            if step * ESCAPE_LIMIT < 2.0 or step > 4.0:
                break
        return self.make(part, best_step) if best is None else best, best_step
