"""Where the time of a round goes."""

from __future__ import annotations

import time
from collections.abc import Callable

PhaseReport = Callable[[int, str], None]  # round, phase


class PhaseClock:
    """Measures the phases of one round, one after the other, and tells which one begins.

    Args:
        round_index: the round.
        tell: is told of each phase when it begins.

    Example:
        >>> clock = PhaseClock(1, print)
        >>> clock.enter("train")
        1 train
        >>> list(clock.stop())
        ['train']
    """

    def __init__(self, round_index: int, tell: PhaseReport) -> None:
        self._round_index = round_index
        self._tell = tell
        self._began = self._mark = time.perf_counter()
        self._phase: str | None = None
        self._phases: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """End the phase before, and begin this one."""
        self.stop()
        self._phase = phase
        self._tell(self._round_index, phase)

    def stop(self) -> dict[str, float]:
        """End the last phase; seconds of each."""
        now = time.perf_counter()
        if self._phase is not None:
            self._phases[self._phase] = self._phases.get(self._phase, 0.0) + now - self._mark
        self._phase, self._mark = None, now
        return dict(self._phases)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the round began."""
        return time.perf_counter() - self._began
