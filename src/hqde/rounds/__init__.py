"""The engine: plan, train, admit, aggregate, commit; history, events, resume."""

from hqde.rounds.commit import Commit, average_groups, commit_group, couple_groups
from hqde.rounds.engine import Engine
from hqde.rounds.events import (
    Event,
    Listener,
    Listeners,
    PhaseListener,
    RoundRecord,
    Totals,
    Validation,
    WorkerRecord,
    synchronisation_line,
)
from hqde.rounds.experiment import Experiment, GroupSettings
from hqde.rounds.finishing import Result
from hqde.rounds.observing import RunObserver
from hqde.rounds.privacy import Privacy
from hqde.rounds.round_log import RoundLog
from hqde.rounds.run_directory import RunDirectory
from hqde.rounds.snapshots import Snapshots
from hqde.rounds.state import RunState
from hqde.rounds.supervision import FaultPolicy, RoundSupervisor
from hqde.rounds.training_run import final_metrics, train_run

__all__ = [
    "Commit",
    "Engine",
    "Event",
    "Experiment",
    "FaultPolicy",
    "GroupSettings",
    "Listener",
    "Listeners",
    "PhaseListener",
    "Privacy",
    "Result",
    "RoundLog",
    "RoundRecord",
    "RoundSupervisor",
    "RunDirectory",
    "RunObserver",
    "RunState",
    "Snapshots",
    "Totals",
    "Validation",
    "WorkerRecord",
    "average_groups",
    "commit_group",
    "couple_groups",
    "final_metrics",
    "synchronisation_line",
    "train_run",
]
