"""What a packet could not say is added to the next one: error feedback, state in, state out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hqde.compression.packet import Packet, decode
from hqde.compression.ranges import Range, as_ranges, dense_ranges
from hqde.compression.registry import Codec
from hqde.errors import ConfigError, PreconditionError
from hqde.weights import Layout


def encode_step(
    codec: Codec,
    step: Tensor,
    owed: Tensor | None,
    *,
    layout: Layout,
    smallest: int,
    feedback: bool,
    generator: torch.Generator,
) -> tuple[Packet, Tensor, Tensor | None]:
    """Encode what one end of a link has to say in one round.

    Args:
        codec: encodes it.
        step: ``(n,)``: a worker's delta, or by how much a group's weights changed.
        owed: what earlier packets left out, from the call before.
        layout: of the model that the step belongs to.
        smallest: tensors with fewer elements stay dense.
        feedback: ``with_feedback``, or without.
        generator: for a codec that rounds stochastically.

    Returns:
        the packet, what it decodes to ``(n,)``, and what is owed now; nothing without feedback.
    """
    dense = dense_ranges(layout, smallest=smallest)
    if feedback:
        return with_feedback(codec, step, owed, num_parameters=layout.num_parameters, dense=dense)
    packet = codec.encode(step, dense=dense, generator=generator)
    return packet, decode(packet), None


def with_feedback(
    codec: Codec,
    vector: Tensor,
    residual: Tensor | None,
    *,
    num_parameters: int,
    dense: Sequence[Range] = (),
    gradient: Tensor | None = None,
) -> tuple[Packet, Tensor, Tensor]:
    """Encode vector + residual; the new residual is what was lost.

    So the sum of all that was decoded follows the sum of all vectors, and stays within one residual of it,
    however coarse the codec. One residual belongs to one link in one direction; forget it (None) when the
    link's ends change. Only parameters that are quantised have one: running statistics are no sums of
    updates.

    Args:
        codec: one that rounds to the nearest.
        vector: ``(n,)`` floating; left as it is.
        residual: ``(num_parameters,)`` from the call before, None at first; left as it is.
        num_parameters: coordinates [0, num_parameters) are fed back, as far as they are not dense.
        dense, gradient: as for ``PackedCodec.encode``.

    Returns:
        the packet, what it decodes to ``(n,)``, and the new residual ``(num_parameters,)``; both vectors in
        the number format and on the device of ``vector``.

    Raises:
        ConfigError: a codec that rounds stochastically: its errors cancel on average, and feedback would add
            them up.
        PreconditionError: a residual of another length.
        NonFiniteError: as ``encode``.

    Example:
        >>> import torch
        >>> from hqde.compression import PackedCodec
        >>> codec, residual, total = PackedCodec(bits=2, allocation="uniform"), None, torch.zeros(128)
        >>> update = torch.linspace(-1, 1, 128)
        >>> for _ in range(50):
        ...     packet, decoded, residual = with_feedback(
        ...         codec, update, residual, num_parameters=128
        ...     )
        ...     total += decoded
        >>> bool((total + residual - 50 * update).abs().max() < 1e-4)
        True

    Source: Seide et al. 2014, "1-bit stochastic gradient descent"; Karimireddy et al. 2019, "Error feedback
    fixes SignSGD", Algorithm 2.
    """
    if codec.is_unbiased:
        raise ConfigError(
            f"error feedback and stochastic rounding exclude each other: codec '{codec.name}' rounds "
            "stochastically; use rounding='nearest', or no feedback"
        )
    if vector.dim() != 1 or not 0 <= num_parameters <= len(vector):
        raise PreconditionError(
            f"{num_parameters} parameters cannot be fed back in a vector of shape {tuple(vector.shape)}"
        )
    if residual is not None and residual.shape != (num_parameters,):
        raise PreconditionError(
            f"a residual of {tuple(residual.shape)} does not belong to {num_parameters} parameters: "
            "start with None"
        )
    vector = vector.detach()
    if residual is not None:
        compensated = vector.clone()
        compensated[:num_parameters] += residual
    else:
        compensated = vector
    packet = codec.encode(compensated, dense=dense, gradient=gradient)
    decoded = decode(packet, expected_count=len(vector), device=vector.device)
    lost = compensated[:num_parameters] - decoded[:num_parameters]
    for start, stop in as_ranges(dense):
        lost[start:stop] = 0.0
    return packet, decoded, lost
