"""What a run directory says, as plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hqde.reporting.document import Document


@dataclass(frozen=True, slots=True)
class WorkerRound:
    """One worker's part of one round. ``None`` where a figure was missing or not finite."""

    worker: int
    group: int
    loss: float | None
    accuracy: float | None
    learning_rate: float | None
    samples: int
    seconds: float | None
    efficiency: float | None
    status: str  # "admitted", "left_out", "rejected" or "failed"
    data_s: float | None = None
    encode_s: float | None = None
    reliability: float | None = None


@dataclass(frozen=True, slots=True)
class MemberScore:
    """One member on the validation split."""

    member: int
    nll: float | None
    accuracy: float | None
    rmse: float | None


@dataclass(frozen=True, slots=True)
class ValidationScore:
    """The ensemble and its members on the validation split after a round."""

    loss: float | None
    accuracy: float | None
    rmse: float | None
    disagreement: float | None
    effective_members: float | None
    members: tuple[MemberScore, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """One line of ``history.jsonl``. Times in seconds, sizes in bytes."""

    round_index: int
    epoch: float
    progress: float | None
    groups: tuple[tuple[int, ...], ...]
    scope: str
    wall_s: float | None
    phases: Mapping[str, float]
    workers: tuple[WorkerRound, ...]
    validation: ValidationScore | None
    sent_bytes: float | None
    dense_bytes: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of ``events.jsonl``."""

    time: str
    round_index: int | None
    kind: str
    worker: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """One line of ``resources.jsonl``: Unix time, where the run was, and the figures that are numbers."""

    timestamp: float
    round_index: int | None
    phase: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """A whole run, read from its directory (see :func:`hqde.reporting.read_run`).

    Args:
        name: the directory's name.
        config: the text of ``config.toml``; empty where there is none.
        rounds: what happened, in the order of the rounds; at least one.
        events: failures, rejections and other events, as they came.
        metrics: ``metrics.json``, or ``None`` while the run has not ended.
        evaluation: ``evaluation.json``, or ``None`` while the test split has not been looked at.
        resources: samples of the machine, in the order of time; empty where it was not watched.
        nodes: likewise of the other machines of a cluster, by name.
    """

    name: str
    config: str
    rounds: tuple[Round, ...]
    events: tuple[Event, ...]
    metrics: Document | None
    evaluation: Document | None
    resources: tuple[ResourceSample, ...] = ()
    nodes: Mapping[str, tuple[ResourceSample, ...]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.metrics is not None

    @cached_property
    def task(self) -> str:
        """``classification`` or ``regression``."""
        if self.evaluation is not None and self.evaluation.text("task"):
            return self.evaluation.text("task")
        scored = [line.validation for line in self.rounds if line.validation is not None]
        return "regression" if any(score.rmse is not None for score in scored) else "classification"

    @property
    def matrix_scaled(self) -> bool:
        """Whether a matrix scaling follows the temperature."""
        return self.metrics is not None and bool(self.metrics.value("matrix_scaling"))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of their ids."""
        return tuple(str(name) for name in self.evaluation.items("classes")) if self.evaluation else ()

    def class_name(self, class_id: float | None) -> str:
        """A class by its id; the id itself where there is no name."""
        if class_id is None:
            return "?"
        index = int(class_id)
        return self.classes[index] if 0 <= index < len(self.classes) else str(index)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The workers of each group in the last round: member ``g`` is what group ``g`` ended with."""
        return self.rounds[-1].groups

    @cached_property
    def worker_ids(self) -> tuple[int, ...]:
        """Every worker that took part."""
        return tuple(sorted({row.worker for line in self.rounds for row in line.workers}))

    @cached_property
    def last_validation(self) -> ValidationScore | None:
        """The newest scores on the validation split."""
        return next((line.validation for line in reversed(self.rounds) if line.validation is not None), None)

    def count_events(self, *kinds: str) -> int:
        """How many events of these kinds there were."""
        return sum(event.kind in kinds for event in self.events)
