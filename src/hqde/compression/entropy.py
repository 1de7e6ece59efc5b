"""One step for all, then an entropy coder: the fewest bytes, for slow links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hqde.compression.chunks import (
    CHUNK,
    FACTORS,
    write_chunk,
    write_factors,
)
from hqde.compression.entropy_body import ENTROPY_ID, write_body
from hqde.compression.header import FLOAT32_TINY, Header, check_vector, refuse_nonfinite, scale_dense, seal
from hqde.compression.importance import Importance, block_spread, check_importance
from hqde.compression.packet import Packet
from hqde.compression.packing import BLOCK
from hqde.compression.quantize import FLOAT32_MAX, Rounding, check_generator, check_rounding
from hqde.compression.ranges import Range, Stream, as_ranges
from hqde.compression.search import Part, StepSearch
from hqde.compression.stages import stage_of
from hqde.compression.steps import Sample
from hqde.errors import ConfigError, NonFiniteError

SAMPLE = 2**17  # values from which step and dead zone are found
SMALL = 2**14  # values below which the budget leaves out headers and tables


@dataclass(frozen=True)
class EntropyCodec:
    """Uniform quantisation with one step, centroids, and an entropy coder: within 0.3 bit of the Gaussian
    bound.

    Equal steps make equal errors everywhere, which is the optimum for the squared error: the coder spends
    many bits on large blocks and nearly none on small ones by itself. Where to round up (the dead zone) is
    chosen for the least error at the wanted rate; the step is then bisected on the true size.

    Args:
        bits: average over the quantised weights, headers and tables included; met within 1 % from below where
            the values allow it (a vector of zeros takes next to nothing). Of fewer than 16,384 weights, it is
            the entropy that meets it, and headers and tables come on top.
        stage: "zstd" everywhere, or "ans": a little smaller and slower, with the extra of that name.
        importance: "variance" for the squared error; "magnitude" and "fisher" make steps finer where the
            importance is high, at the cost of up to 1/16 bit.
        rounding: "nearest", or "stochastic": unbiased, noisier, needs a generator.

    Raises:
        ConfigError: bits outside (0, 7], an unknown name.
        MissingExtraError: "ans" without its extra.

    Example:
        >>> from hqde.compression import decode
        >>> vector = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
        >>> packet = EntropyCodec(bits=2).encode(vector)
        >>> 1.97 < 8 * packet.nbytes / packet.count <= 2.0
        True
        >>> error = (decode(packet) - vector).square().mean() / vector.square().mean()
        >>> 10 * float(error.log10())  # dB; -12.04 is the bound
        -10...

    Source: Gish, Pierce 1968, "Asymptotically efficient quantizing"; Sullivan 1996, "Efficient scalar
    quantization of exponential and Laplacian random variables" (the dead zone).
    """

    name: ClassVar[str] = "entropy"
    bits: float = 1.0
    stage: Literal["zstd", "ans"] = "zstd"
    importance: Importance = "variance"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 7:
            raise ConfigError(
                f"the entropy codec takes more than 0 and up to 7 bits per weight, got {self.bits:g}; "
                "above, PackedCodec is as good and faster"
            )
        check_importance(self.importance)
        check_rounding(self.rounding)
        stage_of(self.stage)

    @property
    def is_unbiased(self) -> bool:
        """Whether the decoded vector is right on average, and error feedback therefore out of place."""
        return self.rounding == "stochastic"

    def encode(
        self,
        vector: Tensor,
        *,
        dense: Sequence[Range] = (),
        gradient: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Packet:
        """Compress a vector; arguments as ``PackedCodec.encode``. Work and generator are on the CPU.

        Raises:
            NonFiniteError, PreconditionError, ConfigError: as ``PackedCodec.encode``.
        """
        check_vector(vector)
        check_generator(self.rounding, generator)
        vector = vector.detach().cpu()
        stream = Stream(len(vector), as_ranges(dense))
        try:
            values, scales = scale_dense(vector, stream.dense)
            header = Header(ENTROPY_ID, vector.dtype, stream, scales)
            numbers = stream.read(vector, 0, stream.size).float()
            largest = float(numbers.abs().max()) if stream.size else 0.0
            if not largest < float("inf"):
                raise NonFiniteError
            exponents = self._exponents(stream, numbers, gradient)
        except NonFiniteError:
            refuse_nonfinite(vector)
            raise
        if exponents is not None:
            numbers = numbers / FACTORS[exponents.long()].repeat_interleave(BLOCK)[: len(numbers)]
            largest = min(float(numbers.abs().max()), FLOAT32_MAX)
            numbers = numbers.clamp(-FLOAT32_MAX, FLOAT32_MAX)
        body = self._fitted(Part(numbers, exponents), largest, generator)
        return Packet(seal(header, values, [body]))

    def _exponents(self, stream: Stream, numbers: Tensor, gradient: Tensor | None) -> Tensor | None:
        """Per block, which of ``FACTORS`` its step is multiplied by: 1 / √importance, to the next 2^(1/4)."""
        gradient = stream.read_gradient(None if gradient is None else gradient.cpu())
        if self.importance == "variance" or not stream.size:
            return None
        spread = block_spread(self.importance, numbers, gradient).double()
        square = block_spread("variance", numbers).double()
        weight = torch.where(square > 0, spread / square.clamp(min=1e-30), 0.0).clamp(min=1e-30).log2()
        middle = weight[square > 0].median() if bool((square > 0).any()) else weight.new_zeros(())
        quarters = (2.0 * (middle - weight)).round().clamp(-40, 40)  # up to a thousandfold either way
        return (quarters + 128).to(torch.uint8)

    def _fitted(self, whole: Part, largest: float, generator: torch.Generator | None) -> Tensor:
        """The body that meets the budget."""
        count = len(whole.numbers)
        if not count or not largest:
            return self._body(whole, 1.0, 0.5, generator)
        stride = max(1, count // SAMPLE)
        sample = Sample(np.sort((whole.numbers[::stride].abs().double() / largest).numpy()))
        step, up_at = sample.best_step(self.bits)
        if self.rounding == "stochastic":
            up_at = 0.5
        state = None if generator is None else generator.get_state()

        def make(part: Part, step: float) -> Tensor:
            if generator is not None and state is not None:
                generator.set_state(state)  # the packet must not depend on how many bodies there were
            return self._body(part, max(step * largest, FLOAT32_TINY), up_at, generator)

        if count < SMALL:
            return make(whole, step)
        return StepSearch(self.bits, sample, up_at, largest, make).find(whole, step)

    def _body(self, part: Part, step: float, up_at: float, generator: torch.Generator | None) -> Tensor:
        stage, (numbers, exponents) = stage_of(self.stage), (part.numbers, part.exponents)
        step = float(np.float32(min(step, FLOAT32_MAX)))
        chunks = []
        for start in range(0, len(numbers), CHUNK):
            data = write_chunk(*self._round(numbers[start : start + CHUNK] / step, up_at, generator), stage)
            factors = b""
            if exponents is not None:
                factors = write_factors(exponents[start // BLOCK : (start + CHUNK) // BLOCK])
            chunks.append((factors, data))
        tail = (len(numbers) - 1) % CHUNK + 1 if len(numbers) else 0
        return write_body(step, stage, exponents is not None, tail, chunks)

    def _round(
        self, scaled: Tensor, up_at: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Whole numbers, and the magnitudes for their centroids; the stochastic ones stand for themselves."""
        if self.rounding == "stochastic":
            below = scaled.floor()
            draws = torch.rand(len(scaled), generator=generator)
            return below.add_(draws < scaled - below), None
        magnitudes = scaled.abs()
        levels = (magnitudes + (1.0 - up_at)).floor_()
        return torch.copysign(levels, scaled), magnitudes
