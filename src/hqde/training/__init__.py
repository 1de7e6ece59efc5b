"""One worker's life: recipe, schedule, objective, optimizer, the local loop."""

from hqde.training.device import resolve_device
from hqde.training.diversity import Diversity
from hqde.training.efficiency import INITIAL_EFFICIENCY, update_efficiency
from hqde.training.memory import step_bytes
from hqde.training.objective import check_outputs, example_losses
from hqde.training.optimizers import make_optimizer
from hqde.training.recipe import Loss, Precision, Recipe
from hqde.training.schedule import Schedule
from hqde.training.stacking import Stack
from hqde.training.turns import Turns
from hqde.training.worker import Order, Worker, WorkerSpec, WorkerState, count_batches, epoch_batches

__all__ = [
    "INITIAL_EFFICIENCY",
    "Diversity",
    "Loss",
    "Order",
    "Precision",
    "Recipe",
    "Schedule",
    "Stack",
    "Turns",
    "Worker",
    "WorkerSpec",
    "WorkerState",
    "check_outputs",
    "count_batches",
    "epoch_batches",
    "example_losses",
    "make_optimizer",
    "resolve_device",
    "step_bytes",
    "update_efficiency",
]
