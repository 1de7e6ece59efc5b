"""One way to call every model, whatever shape its inputs and outputs take."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hqde.errors import PreconditionError

ModelInputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def call_model(model: nn.Module, inputs: ModelInputs) -> Tensor:
    """The model's output tensor for one batch.

    A tensor is passed as it is, a tuple as positional arguments, a dict as keyword arguments. The output is
    the tensor returned, or the ``logits`` of an object or mapping that holds them (Hugging Face style).

    Args:
        model: any module.
        inputs: a batch, rows first.

    Returns:
        The outputs, ``(n, ...)``.

    Raises:
        PreconditionError: inputs of another type, or no tensor and no ``logits`` in what the model returned.

    >>> import torch
    >>> call_model(nn.Bilinear(2, 3, 4), (torch.zeros(5, 2), torch.zeros(5, 3))).shape
    torch.Size([5, 4])
    """
    if isinstance(inputs, Tensor):
        returned = model(inputs)
    elif isinstance(inputs, tuple):
        returned = model(*inputs)
    elif isinstance(inputs, dict):
        returned = model(**inputs)
    else:
        raise PreconditionError(
            f"a model's inputs must be a tensor, a tuple or a dict of tensors, got {type(inputs).__name__}"
        )
    found = returned
    if not isinstance(found, Tensor):
        found = getattr(returned, "logits", None)
        if found is None and isinstance(returned, Mapping):
            found = returned.get("logits")
    if not isinstance(found, Tensor):
        raise PreconditionError(
            f"{type(model).__name__} returned {type(returned).__name__}; "
            "return a tensor, or an object with the tensor as .logits or ['logits']"
        )
    return found
