"""Values on their way between processes: tensors travel as flat buffers that the receiver reads in place.

Ray copies a CPU tensor when it pickles it, and a view takes its whole storage along. Here every tensor
becomes a contiguous NumPy buffer beside the pickle (protocol 5, PEP 574), which Ray's object store hands out
without copies. References to objects in the store travel beside the pickle too, where Ray counts them.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
import ray
import torch
from torch import Tensor, nn

from hqde.compression import Packet, decode

Parcel = tuple[bytes, list[np.ndarray], list[ray.ObjectRef]]
"""A pickle, the buffers of the tensors in it, and the references in it."""


def pack(value: Any) -> Parcel:
    """A value as a pickle, buffers and references.

    Example:
        >>> parcel = pack({"x": torch.arange(6.0).reshape(2, 3)[:, 1]})
        >>> [buffer.nbytes for buffer in parcel[1]]
        [8]
        >>> unpack(parcel)["x"]
        tensor([1., 4.])
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=5, buffer_callback=buffers.append)
    pickler.dump(value)
    arrays = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    return stream.getvalue(), arrays, pickler.references


def unpack(parcel: Parcel) -> Any:
    """The value again. Its tensors share the parcel's memory, which may be read-only: never write to them."""
    head, buffers, references = parcel
    return _Unpickler(io.BytesIO(head), buffers, references).load()


def as_array(vector: Tensor) -> np.ndarray:
    """A tensor's numbers as an array of the same memory, or of a contiguous copy; bfloat16 as raw 16 bits.

    >>> as_array(torch.tensor([1.0])).dtype
    dtype('float32')
    """
    vector = vector.detach().cpu().contiguous()
    return (vector.view(torch.int16) if vector.dtype == torch.bfloat16 else vector).numpy()


def as_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The tensor of an array from ``as_array``, in the same memory; never write to it."""
    with warnings.catch_warnings():
        # Ray's store is read-only memory. torch has no read-only tensors and warns; nothing here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def as_delta(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A delta's piece: the numbers themselves, or, if it is bytes, what the packet in them decodes to."""
    if array.dtype == np.uint8:
        return decode(Packet(as_tensor(array, torch.uint8))).to(dtype)
    return as_tensor(array, dtype)


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes.

    >>> checksum(np.array([0, 1], dtype=np.uint8))
    920527465
    """
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


class _Pickler(cloudpickle.Pickler):
    """Sends dense CPU tensors and references out of band; everything else as cloudpickle would."""

    def __init__(self, stream: io.BytesIO, **options: Any) -> None:
        super().__init__(stream, **options)
        self.references: list[ray.ObjectRef] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, ray.ObjectRef):
            return None
        self.references.append(obj)
        return len(self.references) - 1

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) in (Tensor, nn.Parameter) and obj.layout == torch.strided and not obj.is_quantized:
            array = as_array(obj)
            if array.nbytes:
                flat = pickle.PickleBuffer(array.reshape(-1).view(np.uint8).data)
                return _rebuild, (flat, obj.dtype, tuple(obj.shape), _kind(obj))
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, stream: io.BytesIO, buffers: Sequence[np.ndarray], references: Sequence[ray.ObjectRef]
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._references = references

    def persistent_load(self, place: int) -> ray.ObjectRef:
        return self._references[place]


def _kind(tensor: Tensor) -> bool | None:
    """``None`` for a plain tensor, else whether the parameter is trained."""
    return tensor.requires_grad if isinstance(tensor, nn.Parameter) else None


def _rebuild(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], trained: bool | None) -> Tensor:
    tensor = as_tensor(np.frombuffer(buffer, dtype=np.uint8), torch.uint8).view(dtype).reshape(shape)
    return tensor if trained is None else nn.Parameter(tensor, requires_grad=trained)
