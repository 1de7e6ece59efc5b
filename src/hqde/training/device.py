"""Where workers train."""

from __future__ import annotations

import torch

from hqde.errors import ConfigError


def resolve_device(name: str) -> str:
    """The device that a name stands for on this machine.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, …

    Raises:
        ConfigError: the name is no device, or the GPU is not there.

    Example:
        >>> resolve_device("cpu")
        'cpu'
        >>> resolve_device("gpu")
        Traceback (most recent call last):
        hqde.errors.ConfigError: 'gpu' is no device; use auto, cpu, cuda or cuda:N
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    refusal = f"'{name}' is no device; use auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(refusal) from error
    if device.type not in ("cpu", "cuda"):  # random streams are kept on these two alone
        raise ConfigError(refusal)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"device '{name}' is not there: {count} CUDA devices were found; use cpu")
    return name
