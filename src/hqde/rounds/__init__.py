"""The engine: plan, train, admit, aggregate, commit; history, events, resume."""

from hqde.rounds.commit import Commit, average_groups, commit_group
from hqde.rounds.engine import Engine, Result
from hqde.rounds.events import (
    Event,
    Listener,
    Listeners,
    RoundRecord,
    Totals,
    Validation,
    WorkerRecord,
    synchronisation_line,
)
from hqde.rounds.experiment import Experiment, GroupSettings
from hqde.rounds.round_log import RoundLog
from hqde.rounds.run_directory import RunDirectory
from hqde.rounds.server import (
    SERVER_OPTIMIZERS,
    Adaptive,
    FedAvg,
    Momentum,
    ServerOptimizer,
    make_server_optimizer,
)
from hqde.rounds.state import RunState
from hqde.rounds.training_run import final_metrics, train_run

__all__ = [
    "SERVER_OPTIMIZERS",
    "Adaptive",
    "Commit",
    "Engine",
    "Event",
    "Experiment",
    "FedAvg",
    "GroupSettings",
    "Listener",
    "Listeners",
    "Momentum",
    "Result",
    "RoundLog",
    "RoundRecord",
    "RunDirectory",
    "RunState",
    "ServerOptimizer",
    "Totals",
    "Validation",
    "WorkerRecord",
    "average_groups",
    "commit_group",
    "final_metrics",
    "make_server_optimizer",
    "synchronisation_line",
    "train_run",
]
