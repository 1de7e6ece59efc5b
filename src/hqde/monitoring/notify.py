"""Telling somebody outside: a webhook, or a command."""

from __future__ import annotations

import json
import logging
import queue
import shlex
import subprocess
import threading
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

logger = logging.getLogger("hqde")


class Notifier:
    """Hands each alert to a webhook and a command, in a thread of its own; what fails is logged.

    Args:
        webhook: an address that gets JSON by POST.
        command: split as a shell would, run without one; it finds the JSON on its standard input.
        timeout_s: for each.

    Example:
        >>> Notifier(command="touch told").close()  # nothing to tell, nothing done
    """

    def __init__(
        self, *, webhook: str | None = None, command: str | None = None, timeout_s: float = 10.0
    ) -> None:
        self._webhook, self._command, self._timeout_s = webhook, command, timeout_s
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def tell(self, alert: Mapping[str, Any]) -> None:
        """Pass an alert on; returns at once."""
        if self._webhook is None and self._command is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hqde-notifier", daemon=True)
            self._thread.start()
        self._queue.put(dict(alert))

    def close(self) -> None:
        """Wait until what was told has been passed on, but not longer than it may take."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(2 * self._timeout_s)
            self._thread = None

    def _run(self) -> None:
        while (alert := self._queue.get()) is not None:
            body = json.dumps(alert).encode()
            if self._webhook is not None:
                self._post(self._webhook, body)
            if self._command is not None:
                self._execute(self._command, body)

    def _post(self, address: str, body: bytes) -> None:
        request = Request(address, data=body, headers={"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self._timeout_s):
                pass
        except (URLError, OSError, ValueError) as error:
            logger.warning("monitoring: the webhook %s could not be told: %s", address, error)

    def _execute(self, command: str, body: bytes) -> None:
        try:
            done = subprocess.run(
                shlex.split(command), input=body, capture_output=True, timeout=self._timeout_s, check=False
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            logger.warning("monitoring: the command '%s' could not be run: %s", command, error)
            return
        if done.returncode:
            logger.warning("monitoring: the command '%s' ended with %d", command, done.returncode)
