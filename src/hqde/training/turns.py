"""Workers side by side in threads, and the random generators that a whole process shares."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import nn

from hqde.errors import PreconditionError
from hqde.seeding import GlobalState, seeded


class Stream(Protocol):
    """A worker's global random stream in one round."""

    alone: bool
    """Whether the process's generators are the worker's throughout."""

    def use(self, what: str, *, exclusive: bool = False) -> AbstractContextManager[None]:
        """Where ``what`` may draw from the global generators, and finds them in the worker's stream."""
        ...

    def needs(self, what: str) -> None:
        """``what`` must not run beside others, whether it is seen to draw or not."""
        ...


class Turns:
    """Lets one worker at a time use the process's global generators, each in its own stream.

    Which of a worker's doings draw is seen in the first step of each round, which takes turns throughout.
    What draws goes on taking turns, in every step; what does not runs free. That it does not is checked
    whenever somebody takes a turn, and at the end: generators that moved meanwhile were moved by somebody who
    had no turn. What listens to the workers is let aside, with a state that is no worker's.

    Example:
        >>> here = GlobalState.now()
        >>> with Turns() as turns, own_stream(turns, 0, "worker", 1, device=torch.device("cpu")) as stream:
        ...     with stream.use("model"):
        ...         drawn = torch.rand(1)
        >>> with seeded(0, "worker", 1):
        ...     torch.equal(torch.rand(1), drawn)
        True
        >>> here == GlobalState.now()
        True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resting = self._listeners = GlobalState.now()

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Leave the generators as they were, and say so if somebody moved them in a round that went well."""
        if kind is None:
            self.check()
        self._resting.put()

    @contextmanager
    def turn(self, stream: SharedStream) -> Iterator[None]:
        """Put the generators into the worker's stream, and back afterwards."""
        with self._lock:
            self.check()
            stream.state.put()
            try:
                yield
            finally:
                stream.state = GlobalState.now()
                self._resting.put()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Where a listener may draw from the global generators, and moves no worker's stream."""
        with self._lock:
            self.check()
            self._listeners.put()
            try:
                yield
            finally:
                self._listeners = GlobalState.now()
                self._resting.put()

    def check(self) -> None:
        """See that the generators stand where they were left.

        Raises:
            PreconditionError: somebody moved them without having the turn.
        """
        if GlobalState.now() != self._resting:
            self._resting.put()
            raise PreconditionError(
                "somebody drew random numbers from the global generators without having the turn, so workers "
                "side by side cannot be kept apart: a model or a data set that does not draw in the first "
                "step of a round, or another thread of this process, such as an exporter's; let the model "
                "draw in every step, give the thread a generator of its own, or train one after the other: "
                "run.lanes = 1"
            )


class SharedStream:
    """A worker's stream where others are beside it.

    Args:
        turns: of all.
        state: where the stream stands.
    """

    alone = False

    def __init__(self, turns: Turns, state: GlobalState) -> None:
        self.state = state
        self._turns = turns
        self._draws: dict[str, bool] = {}

    @contextmanager
    def use(self, what: str, *, exclusive: bool = False) -> Iterator[None]:
        """Take a turn, unless it is known that ``what`` does not draw."""
        if not exclusive and self._draws.get(what) is False:
            yield
            return
        before = self.state
        with self._turns.turn(self):
            yield
        self._draws[what] = self._draws.get(what, False) or self.state != before

    def needs(self, what: str) -> None:
        """Take a turn for ``what`` from now on."""
        self._draws[what] = True


class SoleStream:
    """A worker's stream where it is alone: the generators are in it from the beginning to the end."""

    alone = True

    def use(self, what: str, *, exclusive: bool = False) -> AbstractContextManager[None]:  # noqa: ARG002
        """Just go on."""
        return nullcontext()

    def needs(self, what: str) -> None:
        """It has all of it."""


@contextmanager
def own_stream(turns: Turns | None, seed: int, *path: int | str, device: torch.device) -> Iterator[Stream]:
    """The global stream ``path`` for a worker's round, among others if there are ``turns``."""
    if turns is not None:
        yield SharedStream(turns, GlobalState.at_start(seed, *path))
        return
    with seeded(seed, *path, device=device):
        yield SoleStream()


class Recomputation:
    """Sees whether a backward pass calls the model again, as activation checkpointing does.

    It then draws what the forward pass drew, from generators that it sets itself.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with Recomputation(model) as seen:
        ...     _ = model(torch.ones(1, 1))
        >>> seen.called
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.called = False
        self._model = model

    def __enter__(self) -> Recomputation:
        self._handles = [module.register_forward_pre_hook(self._note) for module in self._model.modules()]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002 - what a hook is given
        self.called = True
