"""One training under one attack, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hqde.aggregation import FractionalRule, Rule, make_rule
from hqde.backends import Backend
from hqde.drills.adversary import AnyAttack, BadWorkers, bad_workers
from hqde.errors import NonFiniteError, PreconditionError, QuorumError
from hqde.rounds import Engine, Event, Experiment, Listener, RoundRecord

# A worker that gets less than this part of an equal share counts as found out.
SUSPECTED_BELOW = 0.5


@dataclass(frozen=True)
class Cell:
    """Which training: a place in the table.

    Attributes:
        rule: its name, pre-aggregators before it, joined by ``+``.
        attack: its name, or ``none``.
        num_byzantine: bad workers in each group, and the rule's f.
        skew: how the rows are dealt out, e.g. ``iid`` or ``dirichlet 0.1``.
    """

    rule: str
    attack: str
    num_byzantine: int
    skew: str


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        accuracy, nll: of the ensemble on the test rows; ``None`` if it broke.
        flagged: how often each worker was refused, left out or given less than half of an equal share.
        precision: part of the flagged that were bad; ``None`` if nobody was flagged.
        recall: part of the bad that were flagged; ``None`` without bad workers.
        reasons: the first reason given for each flagged worker.
        broke: why the run ended before its time; empty if it did not.
        wall_s: of the run.
    """

    accuracy: float | None
    nll: float | None
    flagged: dict[int, int]
    precision: float | None
    recall: float | None
    reasons: dict[int, str]
    broke: str
    wall_s: float

    @property
    def detection(self) -> str:
        """Precision and recall for people; empty without bad workers."""
        if self.recall is None:
            return ""
        precision = "–" if self.precision is None else f"{self.precision:.2f}"
        return f"{precision} / {self.recall:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def drill_rule(text: str, num_byzantine: int) -> Rule:
    """A rule as a drill names it: ``"geometric_median"``, or ``"arc+nnm+geometric_median"``.

    The mean takes no f: it is what the others are compared with.

    Raises:
        ConfigError: an unknown name.

    >>> drill_rule("nnm+trimmed_mean", 2).name
    'nnm >> trimmed_mean'
    """
    *mixing, name = text.split("+")
    faults = 0 if text == "mean" else num_byzantine
    return make_rule(name, num_byzantine=faults, mixing=mixing)


def run_trial(
    experiment: Experiment,
    backend: Backend,
    *,
    rule: Rule | FractionalRule,
    attack: AnyAttack | None,
    num_byzantine: int,
    listener: Listener | None = None,
) -> Trial:
    """Train with bad workers, and judge the ensemble on the test rows.

    Args:
        experiment: the training; its own rule is not used.
        backend: where the workers live.
        rule: what the groups aggregate with.
        attack: what the bad workers do; ``None`` for none.
        num_byzantine: bad workers in each group: the last ones.
        listener: is told of the rounds.

    Raises:
        PreconditionError: the rule cannot bear so many, or nobody honest would be left. (What a rule refuses
            in the middle of a run, such as shares too unequal for it, is told in ``Trial.broke``.)
    """
    experiment = replace(experiment, rule=rule)
    groups = experiment.topology.groups_of(experiment.num_workers)
    bad = bad_workers(groups, num_byzantine) if attack is not None else frozenset()
    if attack is not None:
        classes = experiment.splits.schema.num_classes
        backend = BadWorkers(backend, attack, bad, num_classes=classes, seed=experiment.seed)
    watch = _Watch(listener)
    engine = Engine(experiment, backend, listener=watch)
    engine.prepare()
    accuracy = nll = None
    broke = ""
    try:
        found = engine.run().ensemble.evaluate(experiment.splits.test)
        accuracy, nll = found.accuracy, found.nll
    except (NonFiniteError, PreconditionError, QuorumError) as error:
        broke = str(error)
    return watch.trial(bad, accuracy, nll, broke)


@dataclass
class _Watch:
    """Keeps who was flagged, and passes everything on."""

    listener: Listener | None
    flagged: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    handed_in: dict[int, int] = field(default_factory=dict)
    wall_s: float = 0.0

    def on_start(self, plans: Any, first_round: int) -> None:
        if self.listener is not None:
            self.listener.on_start(plans, first_round)

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        if self.listener is not None:
            self.listener.on_step(worker_id, done, total)

    def on_round(self, record: RoundRecord) -> None:
        self.wall_s += record.wall_s
        for row in record.workers:
            if row.status == "failed":
                continue
            self.handed_in[row.worker] = self.handed_in.get(row.worker, 0) + 1
            low = row.weight is not None and row.weight < SUSPECTED_BELOW / len(record.groups[row.group])
            if row.status != "admitted" or low:
                self.flagged[row.worker] = self.flagged.get(row.worker, 0) + 1
                self.reasons.setdefault(row.worker, row.reason or f"its weight is {row.weight:.3g}")
        if self.listener is not None:
            self.listener.on_round(record)

    def on_event(self, event: Event) -> None:
        if self.listener is not None:
            self.listener.on_event(event)

    def trial(self, bad: frozenset[int], accuracy: float | None, nll: float | None, broke: str) -> Trial:
        found = sum(count for worker, count in self.flagged.items() if worker in bad)
        flagged, guilty = sum(self.flagged.values()), sum(self.handed_in.get(w, 0) for w in bad)
        return Trial(
            accuracy=accuracy,
            nll=nll,
            flagged=dict(sorted(self.flagged.items())),
            precision=found / flagged if flagged and bad else None,
            recall=found / guilty if guilty else None,
            reasons=dict(sorted(self.reasons.items())),
            broke=broke,
            wall_s=self.wall_s,
        )
