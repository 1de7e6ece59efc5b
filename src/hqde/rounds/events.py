"""What the engine tells the outside while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from hqde.topology import Groups, RoundPlan, Scope


@dataclass(frozen=True)
class Event:
    """Something out of the ordinary.

    Attributes:
        kind: ``rejected``, ``failed``, ``restarted``, ``excluded``, ``repaired``, ``backed_off`` (fewer
            workers at a time, for want of memory), ``skipped``, ``branched``, ``early_stop``, ``dropped`` (a
            member), ``resumed``, ``interrupted``, ``alert`` or ``cleared`` (an alert).
        round_index: the round it happened in.
        worker_id: whom it concerns, or ``None``.
        reason: one sentence.
    """

    kind: str
    round_index: int
    worker_id: int | None
    reason: str


@dataclass(frozen=True)
class WorkerRecord:
    """One worker's round, as it is reported. Numbers are ``None`` where they are not finite.

    Attributes:
        worker, group: whose.
        loss, accuracy, lr, samples, seconds, efficiency: as its ``Update`` says.
        status: ``admitted``, ``rejected`` (no rule saw the update), ``left_out`` (the rule gave it no
            weight) or ``failed``.
        reason: why it is not ``admitted``.
        weight: of its update in the aggregate, where the rule gives weights.
        reliability: after the round, where it is remembered.
        outliers: how far out its update was, by the name of the score, where somebody looked.
        data_s, encode_s: of ``seconds``, waiting for batches, and encoding the update.
        cpu_s: processor time of the worker's process in the round, all threads together, or of its thread.
        peak_rss_bytes: most memory that its process ever had, where a worker has its own.
    """

    worker: int
    group: int
    loss: float | None
    accuracy: float | None
    lr: float | None
    samples: int
    seconds: float
    efficiency: float | None
    status: str
    reason: str = ""
    weight: float | None = None
    reliability: float | None = None
    outliers: dict[str, float | None] = field(default_factory=dict)
    data_s: float | None = None
    encode_s: float | None = None
    cpu_s: float | None = None
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Validation:
    """The ensemble on the validation split. ``loss`` is NLL in nats, or MSE in squared target units."""

    loss: float
    accuracy: float | None
    rmse: float | None
    members: tuple[dict[str, float], ...]
    disagreement: float | None
    effective_members: float | None


@dataclass(frozen=True)
class RoundRecord:
    """One round, as it goes to the history: times in seconds, sizes in bytes.

    ``group_pull`` is how far workers were drawn to their group when it began, ``global_pull`` how far groups
    were drawn to each other when it ended; ``None`` where they were not. ``epsilon`` is the privacy spent so
    far, ``None`` where none is promised.
    """

    round: int
    epoch: int
    progress: float
    groups: Groups
    scope: Scope
    wall_s: float
    phases: dict[str, float]
    workers: tuple[WorkerRecord, ...]
    validation: Validation | None
    sent_bytes: int
    dense_bytes: int
    group_pull: float | None = None
    global_pull: float | None = None
    epsilon: float | None = None

    @property
    def learning_rate(self) -> float | None:
        """Mean rate of the round's last steps over its workers."""
        rates = [worker.lr for worker in self.workers if worker.lr is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def mean_loss(self) -> float | None:
        """Training loss per example over all workers; ``None`` if no worker has one."""
        shares = [(w.loss, w.samples) for w in self.workers if w.loss is not None and w.samples]
        total = sum(samples for _, samples in shares)
        return sum(loss * samples for loss, samples in shares) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, one line of ``history.jsonl``."""
        return asdict(self)


@dataclass
class Totals:
    """What adds up over a run and survives a resume."""

    wall_s: float = 0.0
    train_s: float = 0.0
    worker_samples: int = 0
    synchronisations: int = 0
    sent_bytes: int = 0
    dense_bytes: int = 0
    failures: int = 0
    rejected: int = 0
    left_out: int = 0
    skipped: int = 0
    restarts: int = 0
    excluded: int = 0
    resumes: int = 0


class Listener(Protocol):
    """Is told what happens; must not change it."""

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:
        """The run begins, or goes on, with round ``first_round`` (1-based)."""
        ...

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """A worker has done ``done`` of ``total`` batches of its round."""
        ...

    def on_round(self, record: RoundRecord) -> None:
        """A round is committed."""
        ...

    def on_event(self, event: Event) -> None:
        """Something out of the ordinary."""
        ...


@runtime_checkable
class PhaseListener(Protocol):
    """A listener that also wants to know what the engine is at."""

    def on_phase(self, round_index: int, phase: str) -> None:
        """Begins: ``train``, ``aggregate``, ``encode``, ``commit``, ``evaluate`` or ``checkpoint``."""
        ...


def phase_report(listener: Listener) -> Callable[[int, str], None]:
    """How to tell a listener what the engine is at; in vain, where it does not want to know."""
    return listener.on_phase if isinstance(listener, PhaseListener) else _ignore


def _ignore(round_index: int, phase: str) -> None:
    pass


@dataclass(frozen=True)
class Listeners:
    """Several listeners as one, told in order.

    Example:
        >>> Listeners().on_event(Event("skipped", 1, None, "no update"))
    """

    each: tuple[Listener, ...] = field(default=())

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:
        """Tell all."""
        for listener in self.each:
            listener.on_start(plans, first_round)

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Tell all."""
        for listener in self.each:
            listener.on_step(worker_id, done, total)

    def on_phase(self, round_index: int, phase: str) -> None:
        """Tell those who want to know."""
        for listener in self.each:
            phase_report(listener)(round_index, phase)

    def on_round(self, record: RoundRecord) -> None:
        """Tell all."""
        for listener in self.each:
            listener.on_round(record)

    def on_event(self, event: Event) -> None:
        """Tell all."""
        for listener in self.each:
            listener.on_event(event)


def synchronisation_line(record: RoundRecord) -> str:
    """The sentence that tells of a synchronisation, with the learning rate on it.

    Args:
        record: of a round whose ``scope`` is not ``"none"``.

    Example:
        >>> worker = WorkerRecord(0, 0, 0.5, 0.9, 0.003, 64, 0.1, 1.0, "admitted")
        >>> record = RoundRecord(2, 2, 0.1, ((0, 1),), "group", 0.2, {}, (worker,), None, 0, 0)
        >>> synchronisation_line(record)
        'Weights aggregated and synchronized at epoch 2 (round 2, in 1 group(s)) LR 0.003'
    """
    rate = record.learning_rate
    what = "across all groups" if record.scope == "global" else f"in {len(record.groups)} group(s)"
    return (
        f"Weights aggregated and synchronized at epoch {record.epoch} "
        f"(round {record.round}, {what}) LR {0.0 if rate is None else rate:.3g}"
    )
