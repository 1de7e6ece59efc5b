"""When to raise the alarm: thresholds with duration and hysteresis. Pure: no clock, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from hqde.errors import ConfigError, did_you_mean
from hqde.monitoring.system_metrics import GIB

SIGNALS = {
    "cpu_percent": "all cores, 0 to 100",
    "memory_percent": "of the machine or its container, 0 to 100",
    "process_rss_bytes": "resident memory of the run's processes",
    "disk_free_bytes": "on the file system of the run",
    "load_average": "over the last minute",
    "gpu_memory_percent": "of the fullest GPU, 0 to 100",
    "gpu_busy_percent": "of the busiest GPU while a run trains on GPUs, 0 to 100",
    "straggler_ratio": "the slowest worker's time over the median's, the least of three rounds in a row",
    "losses_not_finite": "workers whose training loss is NaN or infinite",
    "member_difference": "0: the members predict alike; 1: they err apart, or differ as they once did",
    "rejection_rate": "rejected and failed updates over all of the last five rounds, 0 to 1",
    "train_loss": "mean over the workers",
    "validation_loss": "of the ensemble",
}


@dataclass(frozen=True)
class Signal:
    """One reading: its value (``None`` says nothing), and whom or what it is about."""

    value: float | None
    worker: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class AlertRule:
    """Fires when a signal has been beyond a threshold for long enough, and again only after it came back.

    Args:
        signal: one of ``SIGNALS``.
        above, below: the threshold; exactly one of them.
        clear: how far the value must come back; left out, the threshold itself.
        for_s: seconds that it must last.
        for_readings: readings in a row that must be beyond: samples, or rounds.
        message: a sentence; ``{value}``, ``{threshold}`` and ``{detail}`` are filled in.

    Raises:
        ConfigError: an unknown signal, no threshold or two, a negative duration, or a wrong ``clear``.

    Example:
        >>> rule = AlertRule("memory_percent", above=90.0, clear=80.0)
        >>> states = [AlertState()]
        >>> for second, value in enumerate([85.0, 95.0, 85.0, 95.0, 75.0, 95.0]):
        ...     state, change = judge(rule, value, float(second), states[-1])
        ...     states.append(state)
        ...     print(value, change)
        85.0 None
        95.0 fired
        85.0 None
        95.0 None
        75.0 cleared
        95.0 fired
    """

    signal: str
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    for_s: float = 0.0
    for_readings: int = 1
    message: str = "{detail}: {value}, beyond {threshold}"

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ConfigError(
                f"unknown signal '{self.signal}' in an alert; {did_you_mean(self.signal, SIGNALS)}"
            )
        if (self.above is None) == (self.below is None):
            raise ConfigError(f"an alert on {self.signal} needs either 'above' or 'below', and not both")
        if not all(math.isfinite(value) for value in (self.threshold, self.clearing, self.for_s)):
            raise ConfigError(f"an alert on {self.signal} needs finite numbers")
        if self.for_s < 0 or self.for_readings < 1:
            raise ConfigError(
                f"an alert on {self.signal} needs for_s >= 0 and for_readings >= 1, "
                f"got {self.for_s} and {self.for_readings}"
            )
        if self.is_beyond(self.clearing):
            raise ConfigError(
                f"an alert on {self.signal} that fires {self._words()} cannot clear at {self.clearing:g}: "
                f"choose a value on the other side"
            )
        try:
            self.message.format(value="", threshold="", detail="")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"the message of an alert on {self.signal} may hold {{value}}, {{threshold}} and {{detail}} "
                f"alone: {self.message!r}"
            ) from error

    @property
    def threshold(self) -> float:
        """Where it fires."""
        return float(self.above if self.above is not None else self.below or 0.0)

    @property
    def clearing(self) -> float:
        """Where it clears."""
        return self.threshold if self.clear is None else self.clear

    def is_beyond(self, value: float) -> bool:
        """Whether a value is on the bad side of the threshold."""
        return value > self.threshold if self.above is not None else value < self.threshold

    def is_back(self, value: float) -> bool:
        """Whether a value has come back far enough."""
        return value <= self.clearing if self.above is not None else value >= self.clearing

    def _words(self) -> str:
        return f"{'above' if self.above is not None else 'below'} {self.threshold:g}"


@dataclass(frozen=True)
class AlertState:
    """What a rule remembers: since when and how often in a row it was beyond, and whether it has fired."""

    since: float | None = None
    readings: int = 0
    is_active: bool = False


Change = Literal["fired", "cleared"]


@dataclass(frozen=True)
class Alert:
    """A change worth telling.

    Attributes:
        name: of the rule.
        change: ``fired`` or ``cleared``.
        message: one sentence.
        value: of the signal.
        worker: whom it concerns, if one.
    """

    name: str
    change: Change
    message: str
    value: float
    worker: int | None = None


def judge(
    rule: AlertRule, value: float | None, now: float, state: AlertState
) -> tuple[AlertState, Change | None]:
    """What a reading does to a rule; a value of ``None`` or NaN says nothing and changes nothing.

    Args:
        rule, value: the rule, and its signal's reading.
        now: seconds on any clock that only goes forward.
        state: after the reading before.
    """
    if value is None or math.isnan(value):
        return state, None
    if state.is_active:
        return (AlertState(), "cleared") if rule.is_back(value) else (state, None)
    if not rule.is_beyond(value):
        return AlertState(), None
    since = now if state.since is None else state.since
    state = AlertState(since, state.readings + 1)
    if now - since >= rule.for_s and state.readings >= rule.for_readings:
        return replace(state, is_active=True), "fired"
    return state, None


class Watch:
    """Rules with their states.

    Args:
        rules: by name.

    Example:
        >>> watch = Watch({"memory": AlertRule("memory_percent", above=90.0, message="{value} % full")})
        >>> [alert.message for alert in watch.judge({"memory_percent": Signal(95.0)}, now=0.0)]
        ['95 % full']
        >>> watch.judge({"memory_percent": Signal(96.0)}, now=1.0)
        []
    """

    def __init__(self, rules: Mapping[str, AlertRule]) -> None:
        self.rules = dict(rules)
        self._states = dict.fromkeys(self.rules, AlertState())

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the rules that have fired and not cleared."""
        return tuple(name for name, state in self._states.items() if state.is_active)

    def judge(self, signals: Mapping[str, Signal], now: float) -> list[Alert]:
        """What changes with these readings; rules whose signal is not among them are left alone."""
        found = []
        for name, rule in self.rules.items():
            signal = signals.get(rule.signal)
            if signal is None:
                continue
            self._states[name], change = judge(rule, signal.value, now, self._states[name])
            if change is not None and signal.value is not None:
                found.append(_alert(name, rule, change, signal, signal.value))
        return found


DEFAULT_RULES: Mapping[str, AlertRule] = {
    "memory": AlertRule(
        "memory_percent", above=92.0, clear=88.0, for_s=10.0,
        message="memory is {value} % full: fewer workers or smaller batches take less",
    ),
    "disk": AlertRule(
        "disk_free_bytes", below=1.0 * GIB, clear=2.0 * GIB,
        message="the disk of the run has {value} bytes left: checkpoints and the artefact may not fit",
    ),
    "gpu_idle": AlertRule(
        "gpu_busy_percent", below=10.0, clear=30.0, for_s=60.0,
        message="the GPU is busy {value} % of the time: data or synchronisation hold it up",
    ),
    "straggler": AlertRule(
        "straggler_ratio", above=2.0, clear=1.5,
        message="{detail} takes {value} times as long as the median worker, and its group waits: "
        "look at its machine, or set run.balance = \"adaptive\"",
    ),
    "loss": AlertRule(
        "losses_not_finite", above=0.0,
        message="the training loss of {detail} is not finite: lower the learning rate, or look at the data",
    ),
    "diversity": AlertRule(
        "member_difference", below=0.05, clear=0.1, for_readings=3,
        message="your members are becoming one model ({detail}): synchronise groups less often, or raise "
        "their diversity",
    ),
    "rejections": AlertRule(
        "rejection_rate", above=0.2, clear=0.1,
        message="{value} of the updates of the last rounds were rejected or lost: see the events' reasons",
    ),
}  # fmt: skip


def make_rules(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, AlertRule]:
    """The default rules with changes: settings of a rule by its name, or a new rule.

    ``{"enabled": False}`` takes a rule away.

    Raises:
        ConfigError: an unknown setting, or one that makes no sense.

    Example:
        >>> rules = make_rules({"memory": {"above": 80.0, "clear": 75.0}, "disk": {"enabled": False}})
        >>> rules["memory"].above, "disk" in rules
        (80.0, False)
    """
    rules = dict(DEFAULT_RULES)
    known = [field.name for field in fields(AlertRule)]
    for name, table in changes.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"[monitoring.rules.{name}] must be a table of settings, got {table!r}")
        given = {key: value for key, value in table.items() if key != "enabled"}
        for key, value in given.items():
            if key not in known:
                near = did_you_mean(key, [*known, "enabled"])
                raise ConfigError(f"unknown setting 'monitoring.rules.{name}.{key}'; {near}")
            wanted: tuple[type, ...] = (str,) if key in ("signal", "message") else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ConfigError(
                    f"setting 'monitoring.rules.{name}.{key}' must be a "
                    f"{'text' if str in wanted else 'number'}, got {value!r}"
                )
        if table.get("enabled") is False:
            rules.pop(name, None)
        elif name in rules:
            rules[name] = replace(rules[name], **given)
        elif "signal" in given:
            rules[name] = AlertRule(**given)
        else:
            raise ConfigError(
                f"[monitoring.rules.{name}] is a new rule and needs a signal; the default ones are "
                f"{', '.join(DEFAULT_RULES)}"
            )
    return rules


def names_of(workers: Iterable[int]) -> str:
    """Workers in a sentence.

    >>> names_of([3]), names_of([1, 2])
    ('worker 3', 'workers 1, 2')
    """
    listed: Sequence[int] = list(workers)
    return f"worker{'s' if len(listed) != 1 else ''} {', '.join(map(str, listed))}"


def _alert(name: str, rule: AlertRule, change: Change, signal: Signal, value: float) -> Alert:
    words = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if change == "cleared":
        message = f"{rule.signal} is back at {words}"
    else:
        detail = signal.detail or rule.signal
        message = rule.message.format(value=words, threshold=f"{rule.threshold:g}", detail=detail)
    return Alert(name, change, message, value, signal.worker)
