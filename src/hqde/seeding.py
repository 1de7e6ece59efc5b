"""Random streams that depend on who uses them and for what, never on where or when they are used."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream named by ``path`` under the run's ``seed``.

    BLAKE2b of the seed and the path, so that neighbouring paths give unrelated streams.

    Args:
        seed: the run's seed.
        path: names and numbers that say whose stream it is and what for, e.g. ``("worker", 3, "round", 7)``.

    >>> derive_seed(0, "worker", 1) == derive_seed(0, "worker", 1)
    True
    >>> derive_seed(0, "worker", 1) == derive_seed(0, "worker", 2)
    False
    """
    text = "/".join(repr(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at the start of the stream named by ``path``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *path))


@contextmanager
def seeded(seed: int, *path: int | str, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with the global generators (torch, numpy, random) at the stream ``path``.

    The caller's generators are put back afterwards, so user code around HQDE sees no difference. For what
    takes no generator of its own: parameter initialisation, dropout, a user's transforms.
    """
    value = derive_seed(seed, *path)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the global one is meant
    devices = [device] if device is not None and device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            # Not torch.manual_seed: it also moves the streams of every GPU, and nothing puts them back.
            torch.random.default_generator.manual_seed(value)
            if devices:
                with torch.cuda.device(devices[0]):
                    torch.cuda.manual_seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002
            random.seed(value)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
