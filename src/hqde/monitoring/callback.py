"""Who wants to hear of a run as it goes, in plain JSON types."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

logger = logging.getLogger("hqde")

Json = Mapping[str, Any]


class Callback(Protocol):
    """Is told of a run. A class may leave out the methods that it does not need.

    What is passed are the lines of the run directory as mappings, so a callback depends on no class of HQDE;
    it must not change them. Calls come one at a time, samples from the sampler's thread. A callback that
    raises is logged and not called again: training goes on.

    Example:
        >>> class Loudest:
        ...     def on_round(self, record):
        ...         print(max(worker["loss"] for worker in record["workers"]))
        >>> Callbacks([Loudest()]).on_round({"workers": [{"loss": 0.5}, {"loss": 0.25}]})
        0.5
    """

    def on_start(self, run: Json) -> None:
        """The run begins or goes on.

        Args:
            run: ``name``, ``directory``, ``config`` (the settings as a tree), ``workers``, ``groups``,
                ``rounds`` (of the whole run), ``first_round``.
        """
        ...

    def on_round(self, record: Json) -> None:
        """A round is over: a line of ``history.jsonl``."""
        ...

    def on_event(self, event: Json) -> None:
        """Something out of the ordinary: ``round``, ``kind``, ``worker``, ``reason``."""
        ...

    def on_sample(self, sample: Json) -> None:
        """A look at the machine: a line of ``resources.jsonl``."""
        ...

    def on_node_sample(self, sample: Json) -> None:
        """A look at another machine of the cluster, ``node``: a line of ``nodes.jsonl``."""
        ...

    def on_end(self, metrics: Json | None) -> None:
        """The run is over: ``metrics.json``, or ``None`` where it did not come to its end."""
        ...


class Callbacks:
    """Several callbacks as one that never raises.

    Args:
        each: told in order.
    """

    def __init__(self, each: Sequence[object] = ()) -> None:
        self._each = list(each)
        self._lock = threading.RLock()

    def on_start(self, run: Json) -> None:
        """Tell all."""
        self._tell("on_start", run)

    def on_round(self, record: Json) -> None:
        """Tell all."""
        self._tell("on_round", record)

    def on_event(self, event: Json) -> None:
        """Tell all."""
        self._tell("on_event", event)

    def on_sample(self, sample: Json) -> None:
        """Tell all."""
        self._tell("on_sample", sample)

    def on_node_sample(self, sample: Json) -> None:
        """Tell all."""
        self._tell("on_node_sample", sample)

    def on_end(self, metrics: Json | None) -> None:
        """Tell all."""
        self._tell("on_end", metrics)

    def _tell(self, method: str, what: Json | None) -> None:
        with self._lock:
            for callback in tuple(self._each):
                call = getattr(callback, method, None)
                if call is None:
                    continue
                try:
                    call(what)
                except Exception as error:  # noqa: BLE001 - somebody else's code; training must not stop for it
                    self._each.remove(callback)
                    logger.warning(
                        "monitoring: %s failed in %s (%s: %s) and is left out from here on",
                        type(callback).__name__, method, type(error).__name__, error,
                    )  # fmt: skip
