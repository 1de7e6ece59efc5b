"""Random streams that depend on who uses them and for what, never on where or when they are used."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream named by ``path`` under the run's ``seed``.

    BLAKE2b of the seed and the path, so that neighbouring paths give unrelated streams. PyTorch's generators
    on the CPU make use of its lower 32 bits alone: good for science, nothing to keep a secret with.

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


def unguessable(key: int, *path: int | str) -> np.random.Generator:
    """A NumPy generator at the start of the stream named by ``path``: nobody finds it by trying keys.

    Philox, with 128 bits of BLAKE2b of the key and the path for its own key.

    Args:
        key: as many bits as the secret has.
        path: as for ``derive_seed``.

    >>> unguessable(5, "noise", 1).random() == unguessable(5, "noise", 1).random()
    True
    >>> unguessable(5, "noise", 1).random() == unguessable(5 + 2**40, "noise", 1).random()
    False

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    text = "/".join(repr(part) for part in (key, *path))
    own = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(own, "big")))


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


@dataclass(frozen=True, eq=False)
class GlobalState:
    """Where the generators stand that a whole process shares: torch's on the CPU, NumPy's and Python's.

    Threads share them too. Who puts its own state before it draws, and takes it along afterwards, draws as
    if it were alone.

    >>> here = GlobalState.now()
    >>> _ = torch.rand(1)
    >>> here == GlobalState.now()
    False
    >>> here.put()
    >>> here == GlobalState.now()
    True
    """

    torch_state: Tensor
    numpy_state: tuple[Any, ...]
    python_state: tuple[Any, ...]

    @classmethod
    def now(cls) -> GlobalState:
        """Where they stand."""
        return cls(torch.random.get_rng_state(), _numpy_state(), random.getstate())

    @classmethod
    def at_start(cls, seed: int, *path: int | str) -> GlobalState:
        """Where `seeded` puts them for the stream ``path``; nothing is moved."""
        value = derive_seed(seed, *path)
        legacy = np.random.RandomState(value % 2**32)
        torch_state = torch.Generator().manual_seed(value).get_state()
        return cls(torch_state, tuple(legacy.get_state(legacy=True)), random.Random(value).getstate())

    def put(self) -> None:
        """Put them here."""
        torch.random.set_rng_state(self.torch_state)
        np.random.set_state(self.numpy_state)  # noqa: NPY002
        random.setstate(self.python_state)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GlobalState):
            return NotImplemented
        mine, theirs = self.numpy_state, other.numpy_state
        return (
            torch.equal(self.torch_state, other.torch_state)
            and bool((mine[1] == theirs[1]).all())
            and (mine[0], *mine[2:]) == (theirs[0], *theirs[2:])
            and self.python_state == other.python_state
        )

    __hash__ = None  # type: ignore[assignment]


def _numpy_state() -> tuple[Any, ...]:
    return tuple(np.random.get_state(legacy=True))  # noqa: NPY002
