"""One worker in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import ray
import torch
from torch import Tensor

from hqde.aggregation import RemoteDelta, Update, count_nonfinite, norm_of
from hqde.backends.on_ray.shipping import Parcel, as_array, as_tensor, checksum, pack, unpack
from hqde.compression import Downlink, Packet, decode
from hqde.data import Examples, SubsetExamples
from hqde.ensemble import Ensemble
from hqde.memory import freed_memory_kept
from hqde.monitoring import peak_rss_bytes
from hqde.training import Order, Worker, WorkerSpec
from hqde.weights import Layout, Weights

# Plain actors run one method at a time; this group answers while a round is under way.
CONTROL = "control"


@dataclass(frozen=True)
class Pieces:
    """Where a delta was cut, and what each piece must check to.

    Attributes:
        worker_id: whose delta it is.
        bounds: first and past-the-last coordinate of each piece.
        checksums: CRC-32 of each. (A piece of bytes is a packet, see ``as_delta``.)
        refs: to the pieces, filled in by the driver.
    """

    worker_id: int
    bounds: tuple[tuple[int, int], ...]
    checksums: tuple[int, ...]
    refs: tuple[Any, ...] = ()


class WorkerActor:
    """Hosts a ``Worker``. Every call says which round and attempt it belongs to, and may be made again.

    Args:
        threads: torch threads.
        gpu_fraction: share of its GPU's memory that the process may take; 0 without a GPU.
    """

    def __init__(self, threads: int, gpu_fraction: float) -> None:
        torch.set_num_threads(threads)
        if gpu_fraction and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_fraction))
        self._threads = threads
        self._spec: WorkerSpec | None = None
        self._examples: Examples | None = None
        self._worker: Worker | None = None
        self._last: tuple[tuple[int, int], tuple[Any, ...]] | None = None
        self._held: tuple[int, Tensor] | None = None  # the last start, and its round
        self._progress = (0, 0)

    def build(self, spec: Parcel, examples: Parcel) -> tuple[str, Layout]:
        """Make the worker; returns the id of its node and the layout of its model."""
        torch.set_num_threads(self._threads)
        self._spec, self._examples = unpack(spec), unpack(examples)
        return ray.get_runtime_context().get_node_id(), self._renewed().layout

    def check(self, index: np.ndarray) -> None:
        """Run a few examples through the model."""
        assert self._worker is not None
        self._worker.check(torch.from_numpy(index.copy()))

    def progress(self) -> tuple[int, int]:
        """Batches done, and batches in the round."""
        return self._progress

    def train_round(
        self,
        order: Parcel,
        bounds: Sequence[tuple[int, int]],
        restore: bool,
        state: Parcel | None,
        *start: np.ndarray,
    ) -> tuple[Any, ...]:
        """Train a round; what was trained already is handed out again.

        Args:
            order: an ``Order`` whose start holds no vector, and whose downlink no packet.
            bounds: how to cut the delta.
            restore: first become a new worker, with ``state`` if it is given.
            state: a ``WorkerState``, from before the round.
            start: the vector of the order's start, in one piece or more; with a downlink, its packet.

        Returns:
            the update without its delta; the worker's state; the pieces of the delta.
        """
        given: Order = unpack(order)
        tag = (given.round_index, given.attempt)
        if self._last is None or self._last[0] != tag:
            given = self._with_start(given, start)
            worker = self._renewed() if restore else self._worker
            assert worker is not None
            if restore and state is not None:
                worker.load_state(unpack(state), given.start)
            self._last = None  # frees the round before
            self._last = (tag, self._train(worker, given, bounds))
        return self._last[1]

    def state(self) -> Parcel:
        """The worker's state as it stands."""
        assert self._worker is not None
        return pack(self._worker.state())

    @freed_memory_kept()
    def predict(
        self, ensemble: Parcel, examples: Parcel, slices: Sequence[tuple[int, int]]
    ) -> list[np.ndarray]:
        """Every member's prediction for some slices of the rows: ``(m, n, c)`` of each."""
        members: Ensemble = unpack(ensemble)
        rows: Examples = unpack(examples)
        return [
            as_array(members.predict_members(SubsetExamples(rows, torch.arange(first, last))))
            for first, last in slices
        ]

    def reduce(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Carry out a step of an aggregation."""
        return function(*arguments)

    @freed_memory_kept()
    def _train(self, worker: Worker, order: Order, bounds: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
        self._progress = (0, 0)
        load = NodeLoad()
        update = worker.train_round(order, on_step=self._note)
        delta = update.delta
        assert isinstance(delta, Tensor)
        packet = update.packet
        if packet is None:
            pieces = [as_array(delta[first:last]) for first, last in bounds]
        else:
            pieces = [as_array(packet.cut(first, last).payload) for first, last in bounds]
        sums = tuple(checksum(piece) for piece in pieces)
        handle = Pieces(order.worker_id, tuple(bounds), sums)
        told = replace(
            update,
            delta=RemoteDelta(len(delta), delta.dtype, count_nonfinite(delta), norm_of(delta), handle),
            packet=None,
            sent_bytes=update.integers.nbytes + sum(piece.nbytes for piece in pieces),
            node_load=load.of_others(),
            peak_rss_bytes=peak_rss_bytes(),
        )
        return told, pack(worker.state()), *pieces

    def _with_start(self, order: Order, start: Sequence[np.ndarray]) -> Order:
        """The order with the vector it starts from, made of what came and of what is here."""
        if order.downlink is None:
            vector = as_tensor(start[0] if len(start) == 1 else np.concatenate(start), self._dtype())
        else:
            packet = Packet(as_tensor(start[0], torch.uint8))
            down = Downlink(packet, order.downlink.base_round)
            order = replace(order, downlink=down)
            vector = decode(packet)
            if down.base_round:
                if self._held is None or self._held[0] != down.base_round:
                    raise RuntimeError(f"the start of round {down.base_round} is not here any more")
                vector += self._held[1]
        self._held = (order.round_index, vector)
        return replace(order, start=Weights(vector, order.start.integers))

    def _renewed(self) -> Worker:
        assert self._spec is not None
        assert self._examples is not None
        self._worker = Worker(self._spec, self._examples)
        return self._worker

    def _dtype(self) -> torch.dtype:
        assert self._worker is not None
        return self._worker.layout.dtype

    def _note(self, done: int, total: int) -> None:
        self._progress = (done, total)


class NodeLoad:
    """How busy others kept this machine since the object was made."""

    def __init__(self) -> None:
        self._before = self._times()

    def of_others(self) -> float:
        """Fraction of all CPU time, in [0, 1]."""
        total, busy, own = (now - then for now, then in zip(self._times(), self._before, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else 0.0

    def _times(self) -> tuple[float, float, float]:
        node, own = psutil.cpu_times(), psutil.Process().cpu_times()
        total = sum(node)
        return total, total - node.idle - getattr(node, "iowait", 0.0), own.user + own.system


def whole_update(update: Update, refs: Sequence[Any]) -> Update:
    """An update as the driver passes it on: its delta knows where its pieces are."""
    assert isinstance(update.delta, RemoteDelta)
    handle = replace(update.delta.handle, refs=tuple(refs))
    return replace(update, delta=replace(update.delta, handle=handle))


def with_control(actor_class: type[WorkerActor]) -> type[WorkerActor]:
    """The class with ``progress`` in the group that answers while a round is under way."""

    class Hosted(actor_class):  # type: ignore[valid-type, misc]
        progress = ray.method(concurrency_group=CONTROL)(actor_class.progress)

    Hosted.__name__ = Hosted.__qualname__ = actor_class.__name__
    return Hosted
